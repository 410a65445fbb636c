"""A tokenizer that the user gives beside a source: a file, a folder, or words of a recipe."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from intaglio.errors import InputError, OptionError, SourceError
from intaglio.exporter.options.loading import LoadOptions
from intaglio.runtime.plain_files import read_bytes
from intaglio.runtime.tokenizer_process import Tokenizer
from intaglio.state import BATCH, TIME

from .sentencepiece_model import convert
from .source import Source
from .tokenizer_files import TOKENIZER, Text

MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
HUGE = 1 << 31  # tokens, where a model does not say how many it knows


def with_text(source: Source, options: LoadOptions) -> Source:
    """`source` with the tokenizer of `options`, in place of one that it has itself.

    Raises:
        OptionError: if the source takes no tokens.
        SourceError: if the tokenizer cannot be read.
    """
    if options.text is None:
        return source
    stepped = [name for name, axes in source.dynamic.items() if axes == {0: BATCH, 1: TIME}]
    if len(stepped) != 1 or source.inputs[stepped[0]].dtype.is_floating_point:
        names = ", ".join(source.dynamic)
        raise OptionError(
            f"--tokenizer is for a model that takes token ids [batch, time]; {source.name} takes "
            f"{names}. Leave it out."
        )
    below = source.bounds.get(stepped[0])
    text, notes = _read(options.text, below if isinstance(below, int) else HUGE, options.allow_code)
    return replace(source, text=text, notes=(*source.notes, *notes))


def text_in_words(text: Text) -> dict[str, Any]:
    """What a recipe says of a tokenizer: the hash of its file, and what ends a text."""
    sha256 = hashlib.sha256(text.files[TOKENIZER]).hexdigest()
    return {"sha256": sha256, "eos": list(text.eos)}


def _read(
    given: str | Path | Mapping[str, Any], vocabulary: int, allow_code: bool
) -> tuple[Text, tuple[str, ...]]:
    if isinstance(given, Mapping):
        if "folder" not in given:
            raise OptionError(
                f"The recipe has a tokenizer of the SHA-256 {given.get('sha256')}, which does not "
                "lie beside it. Give it with --tokenizer FILE."
            )
        text, notes = _of_folder(Path(given["folder"]), vocabulary, allow_code)
        ends = [each for each in given.get("eos", ()) if isinstance(each, int)]
        return replace(text, eos=tuple(ends)), notes
    path = Path(given)
    return (_of_folder if path.is_dir() else _of_file)(path, vocabulary, allow_code)


def _of_folder(path: Path, vocabulary: int, allow_code: bool) -> tuple[Text, tuple[str, ...]]:
    from .huggingface.tokenizer import text_of_folder

    model = next((path / name for name in MODELS if (path / name).is_file()), None)
    if not (path / TOKENIZER).is_file() and model is not None:
        return _of_file(model, vocabulary, allow_code)
    text, notes = text_of_folder(path, {}, vocabulary, allow_code=allow_code)
    if text is None:
        said = notes[0] if notes else f"{path} holds no {TOKENIZER}."
        raise SourceError(f"{said} Give a {TOKENIZER}, or a model of sentencepiece.")
    return text, notes


def _of_file(path: Path, vocabulary: int, allow_code: bool) -> tuple[Text, tuple[str, ...]]:
    del allow_code
    ends: tuple[int, ...] = ()
    notes = []
    try:
        content: str | bytes = (raw := read_bytes(path))
        if path.suffix == ".model":
            content, ends = convert(raw, str(path))
            notes.append(f"The tokenizer was converted from {path.name}.")
        tokenizer = Tokenizer(content, str(path))
    except (InputError, OSError) as error:
        said = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise SourceError(f"The tokenizer {path} cannot be read: {said}.") from error
    if not ends:
        notes.append(f"{path.name} does not say which token ends a text; run has --stop TEXT.")
    if tokenizer.highest >= vocabulary:
        notes.append(
            f"The tokenizer has tokens up to {tokenizer.highest}, the model knows those below "
            f"{vocabulary}: a text with one of the others cannot be given. Is it the tokenizer of "
            "this model?"
        )
    return Text(files={TOKENIZER: tokenizer.text().encode()}, eos=ends), tuple(notes)
