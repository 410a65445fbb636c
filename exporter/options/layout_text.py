"""Layouts of inputs as they are typed: ``image:batchx3xheight``, one for each input."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from intaglio.errors import OptionError

Axes = Mapping[str, Sequence[int | str]]

NEXT_INPUT = re.compile(r"\s+(?=[^\s:,=]+:)")


def read_layouts(given: Any) -> dict[str, list[int | str]]:
    """The dimensions of each input, from what `axes` may be.

    Args:
        given: a mapping of sequences of dimensions, or of texts such as ``batchx3xheight``; or
            texts with the input's name before them, ``image:batchx3xheight``, in a sequence or in
            one text with spaces between.

    Raises:
        OptionError: if it is of another form.
    """
    if isinstance(given, Mapping):
        return {name: _words(words, f"{name}:{words}") for name, words in given.items()}
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        raise OptionError(f"--axes: {given!r} is not NAME:DIMS, as mel:batchx80xtime.")
    found = {}
    for text in (part for texts in given for part in NEXT_INPUT.split(texts.strip())):
        name, colon, words = text.partition(":")
        if not name or not colon:
            raise OptionError(f"--axes: {text!r} is not NAME:DIMS, as mel:batchx80xtime.")
        found[name] = _words(words, text)
    return found


def _words(given: Any, where: str) -> list[int | str]:
    words = split_words(given) if isinstance(given, str) else given
    if (
        not isinstance(words, Sequence)
        or not all(isinstance(word, (int, str)) for word in words)
        or not all(str(word) for word in words)
    ):
        raise OptionError(f"--axes: {where!r} is not NAME:DIMS, as mel:batchx80xtime.")
    return list(words)


def split_words(text: str) -> list[int | str]:
    """The words of ``batchx3xheight``, or of ``batch,3,height``; none of a scalar.

    An x separates words where it stands after a number or before one; else where both sides are
    names, so that names with an x in them take commas.
    """
    parts = [part.strip() for part in (text.split(",") if "," in text else text.split("x"))]
    return [int(part) if part.isdecimal() else part for part in parts if text]
