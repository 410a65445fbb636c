"""TOML from whomever it comes: what a parser would spend hours on is refused before."""

import re
import tomllib
from typing import Any

LARGEST = 1 << 20  # characters
PARTS = 64  # of a dotted key; the time and memory that they take grow with their square

_PART = r"(?:[\w-]++|\"[^\"\n]*+\"|'[^'\n]*+')"
_LONG = re.compile(rf"(?<![\w-])(?:{_PART}[ \t]*+\.[ \t]*+){{{PARTS}}}")


def parse_toml(text: str) -> dict[str, Any]:
    """What a text of TOML says.

    Raises:
        ValueError: if it is not TOML, too long, or nested more deeply than anyone writes.
    """
    if len(text) > LARGEST:
        raise ValueError(f"it has {len(text)} characters, more than {LARGEST}")
    if _LONG.search(text):
        raise ValueError(f"it has a key of more than {PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
