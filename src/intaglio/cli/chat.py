"""The files of a tokenizer, a bundle's or the user's, and conversations by its chat template."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from intaglio.errors import InputError
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.plain_files import parse_json, read_text
from intaglio.runtime.session import Session

from .codecs import Codec, TokenizerCodec, codec

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json", SETTINGS)
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What turns text into tokens: a tokenizer.json, the settings beside it, and what ends a text.

    `content` is None without a tokenizer, `template` without a chat template.
    """

    content: bytes | None = None
    eos: Sequence[int] = ()
    settings: Mapping[str, Any] | None = None
    template: str | None = None

    @classmethod
    def of(cls, session: Session) -> Self:
        """Those that the bundle of a session holds.

        Raises:
            BundleError: if a file of them is absent or changed.
        """
        text, bundle = session.manifest.text, session.bundle
        place = text.get("tokenizer")
        if place is None:
            return cls()
        folder = str(place).rpartition("/")[0]

        def read(name: str) -> str | None:
            path = f"{folder}/{name}"
            return (
                bundle.read(path).decode(errors="replace")
                if path in bundle.manifest.files
                else None
            )

        return cls(content=bundle.read(place), eos=text.get("eos", ()), **_beside(read))

    @classmethod
    def at(cls, path: Path) -> Self:
        """Those of a file tokenizer.json, or of the folder that holds one.

        Raises:
            InputError: if it cannot be read, or is a model of sentencepiece.
        """
        folder = path if path.is_dir() else path.parent
        file = path / TOKENIZER if path.is_dir() else path
        try:
            if path.suffix == ".model":
                raise InputError(
                    f"{path} is a model of sentencepiece. Export with --tokenizer {path}: the "
                    "bundle then holds what it is converted to."
                )
            content = read_text(file).encode()

            def read(name: str) -> str | None:
                found = folder / name
                return read_text(found) if path.is_dir() and found.is_file() else None

            return cls(content=content, **_beside(read))
        except (OSError, UnicodeDecodeError) as error:
            said = getattr(error, "strerror", None) or error
            raise InputError(f"The tokenizer {file} cannot be read: {said}.") from error

    def codec(self, entry: GraphEntry) -> Codec:
        """What reads and writes the text of a graph; see `intaglio.cli.codecs.codec`."""
        text = {"eos": self.eos, "end": _token(self.settings or {}, "eos_token")}
        return codec(entry, text, self.content)

    def conversation(self, messages: Sequence[Mapping[str, str]], words: Codec) -> list[int]:
        """Tokens of a conversation, up to where the next answer begins.

        Raises:
            InputError: if there is no chat template, or it refuses the messages.
        """
        if self.template is None or not isinstance(words, TokenizerCodec):
            raise InputError(
                "There is no chat template: it comes with a tokenizer as chat_template.jinja or in "
                "tokenizer_config.json. Leave --chat out, or give --tokenizer DIR with one."
            )
        special = {name: _token(self.settings or {}, name) for name in SPECIAL}
        values = {"messages": list(messages), "add_generation_prompt": True}
        return words.chat(self.template, {**special, **values})


def _token(settings: Mapping[str, Any], name: str) -> str:
    found = settings.get(name)
    found = found.get("content") if isinstance(found, Mapping) else found
    return found if isinstance(found, str) else ""


def _beside(read: Callable[[str], str | None]) -> dict[str, Any]:
    """Settings and template, by what reads a file of a name if it is there."""
    settings = _table(read(SETTINGS))
    for name in TEMPLATES:
        found: Any = read(name)
        if found is not None and name.endswith(".json"):
            found = _table(found).get("chat_template")
        if isinstance(found, list):
            named = {x.get("name"): x.get("template") for x in found if isinstance(x, Mapping)}
            found = named.get("default")
        if isinstance(found, str):
            return {"settings": settings, "template": found}
    return {"settings": settings}


def _table(text: str | None) -> Mapping[str, Any]:
    try:
        found = {} if text is None else parse_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}
