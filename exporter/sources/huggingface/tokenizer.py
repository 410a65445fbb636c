"""The tokenizer of a directory: its files as they are, one written from older forms if need be.

``tokenizer.json`` is what the `tokenizers` library reads.  Directories from before it hold a
vocabulary and merges, or a model of sentencepiece, which the library converts.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from intaglio.errors import InputError, SourceError, reason
from intaglio.exporter.sources.tokenizer_files import TOKENIZER, Text
from intaglio.quiet import quiet, summary
from intaglio.runtime.plain_files import leads_away, read_bytes, read_json
from intaglio.runtime.tokenizer_process import Tokenizer

from .directory import Directory

SETTINGS = "tokenizer_config.json"
GENERATION = "generation_config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
COPIED = (SETTINGS, "special_tokens_map.json", "added_tokens.json", GENERATION, *TEMPLATES)
OLDER = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")


def read_text(
    directory: Directory, vocabulary: int, *, allow_code: bool
) -> tuple[Text | None, tuple[str, ...]]:
    """Return the tokenizer of a directory; see `text_of_folder`."""
    return text_of_folder(directory.path, directory.config, vocabulary, allow_code=allow_code)


def text_of_folder(
    path: Path, config: Mapping[str, Any], vocabulary: int, *, allow_code: bool
) -> tuple[Text | None, tuple[str, ...]]:
    """Return the tokenizer of a folder, None where there is none, and notes for people.

    Args:
        path: where its files lie.
        config: of the model, which may say what ends a text.
        vocabulary: tokens that the model knows.
        allow_code: let the library run code of the directory to convert an older form.

    Raises:
        SourceError: if tokenizer.json cannot be read.
    """
    tokenizer, notes = _tokenizer(path, allow_code=allow_code)
    if tokenizer is None:
        return None, notes
    files = {name: _copied(path / name) for name in COPIED if (path / name).is_file()}
    text = Text(
        files={**files, TOKENIZER: tokenizer.text().encode()},
        eos=tuple(token for token in _eos(path, config) if token < vocabulary),
        template=_template(files),
    )
    if tokenizer.highest >= vocabulary:
        fault = (
            f"The tokenizer has tokens up to {tokenizer.highest}, the model knows those below "
            f"{vocabulary}: a text with one of the others cannot be given. Is it the tokenizer of "
            "this model?"
        )
        notes = (*notes, fault)
    return text, notes


def _copied(path: Path) -> bytes:
    """What is carried along into the bundle, which others may get to see."""
    if leads_away(path, path.parent):
        raise SourceError(
            f"{path} is a link to {path.resolve()}, and would be copied into the bundle. Put the "
            "file itself there."
        )
    try:
        return read_bytes(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error


def _tokenizer(path: Path, *, allow_code: bool) -> tuple[Tokenizer | None, tuple[str, ...]]:
    if (path / TOKENIZER).is_file():
        return _read(path / TOKENIZER), ()
    older = next((name for name in OLDER if (path / name).is_file()), None)
    if older is None:
        return None, ()
    if find_spec("transformers") is None:
        return None, (
            f"Converting the tokenizer ({older}) needs transformers. The bundle has none.",
        )
    import transformers

    try:
        with quiet():
            converted: Any = transformers.AutoTokenizer.from_pretrained(
                path.resolve(), local_files_only=True, trust_remote_code=allow_code
            )
            text = converted.backend_tokenizer.to_str()
            said = f"The tokenizer was converted from {older}."
            return Tokenizer(text, str(path / older)), (said,)
    except Exception as error:  # noqa: BLE001  each kind of tokenizer fails in its own way
        fault = f"The tokenizer ({older}) cannot be converted to {TOKENIZER}: {summary(error)}."
        return None, (f"{fault} The bundle has none.",)


def _read(path: Path) -> Tokenizer:
    try:
        return Tokenizer(_copied(path), str(path))
    except (InputError, OSError) as error:
        said = reason(error) if isinstance(error, OSError) else str(error).rstrip(".")
        raise SourceError(
            f"{path} cannot be read ({said}). Copy it again, or leave it out to export without a "
            "tokenizer."
        ) from error


def _eos(path: Path, config: Mapping[str, Any]) -> list[int]:
    """Tokens that end a text, as the settings of generation say, else the config."""
    for values in (_json(path / GENERATION), config):
        found = values.get("eos_token_id")
        if found is not None:
            tokens = found if isinstance(found, list) else [found]
            return [token for token in tokens if isinstance(token, int) and token >= 0]
    return []


def _template(files: dict[str, bytes]) -> str | None:
    """The file that holds the chat template, if one does."""
    for name in TEMPLATES:
        if name in files:
            return name
    settings = files.get(SETTINGS)
    return SETTINGS if settings is not None and b'"chat_template"' in settings else None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is not valid JSON: {error}. Copy it again.") from error
    return values if isinstance(values, dict) else {}
