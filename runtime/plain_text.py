"""Text from whomever it comes, as it may be shown: what steers a terminal or hides is told."""

import re

# All but newline and tab; what ends a line or turns the direction of text; halves of a character.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKS = re.compile(r"[\n\t\u061c\u200e\u200f]")  # which a running text may have, and a name not
SHOWN = "\N{REPLACEMENT CHARACTER}"


def plain(text: str) -> str:
    """A running text, of lines, with U+FFFD for control characters."""
    return _CONTROL.sub(SHOWN, text)


def one_line(text: str) -> str:
    """A text that is one line and stays in its place, whatever names are in it."""
    return _MARKS.sub(SHOWN, plain(text))


def indented(text: str) -> str:
    """A text whose further lines stand under its first one, so that none looks like another's."""
    first, *more = text.split("\n")
    return "\n".join([one_line(first), *(f"  {one_line(line)}" for line in more)])
