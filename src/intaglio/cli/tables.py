"""Tables that fit a terminal: cells fold, and columns that do not fit go into a table below.

Nothing is cut off, and no line is wider than asked for, unless one number by itself is.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

INDENT = GAP = 2  # spaces before a line, and between columns
LEAST = 16  # letters that a column of text keeps before another is moved below,
FIRST = 32  # and the first, which names the rows, up to half of the line

_NUMBER = re.compile(r"[-+]?[\d.,]*\d(e[-+]?\d+)?( ?(%|[kMG]?B|ms|x))?|-|nan|inf|")
_PLACES = re.compile(r"(?<=[./_,:=-])")  # after which a long word may be broken


@dataclass(frozen=True)
class TableLine:
    """One line of a table; `head` tells whether it names columns."""

    text: str
    head: bool = False


def lines_of(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[TableLine]:
    """The lines of a table.

    Numbers are set to the right, text to the left.  Where the columns do not fit side by side,
    those on the right follow in a table of their own, with the first column before them.

    Args:
        head: names of the columns.
        rows: cells, as many in each as there are columns.
        width: letters of the longest line.
    """
    texts = zip(head, *rows, strict=True)
    first = min(FIRST, width // 2)
    columns = [_Column(cells, LEAST if place else first) for place, cells in enumerate(texts)]
    for block in _blocks(columns, width - INDENT):
        yield from _side_by_side(block, width - INDENT)


class _Column:
    """One column: its cells, the first of them its name."""

    def __init__(self, cells: Sequence[str], least: int) -> None:
        self.cells = cells
        self.natural = max(map(len, cells))
        self.number = any(cells[1:]) and all(_NUMBER.fullmatch(cell) for cell in cells[1:])
        self.least = self.natural if self.number else min(self.natural, least)

    def at(self, widest: int) -> int:
        """Its width where no column of text is to be wider than `widest`."""
        return max(self.least, min(self.natural, widest))

    def line(self, cell: str, width: int) -> str:
        return cell.rjust(width) if self.number else cell.ljust(width)


def _blocks(columns: Sequence[_Column], room: int) -> Iterator[list[_Column]]:
    """Columns that fit side by side, each time after the first one."""
    first, *others = columns
    block = [first]
    for column in others:
        if len(block) > 1 and _sum([*block, column], 0) > room:
            yield block
            block = [first]
        block.append(column)
    yield block


def _sum(block: Sequence[_Column], widest: int) -> int:
    return sum(column.at(widest) for column in block) + GAP * (len(block) - 1)


def _side_by_side(block: Sequence[_Column], room: int) -> Iterator[TableLine]:
    widest = max(column.natural for column in block)
    while widest > 1 and _sum(block, widest) > room:
        widest -= 1
    widths = [column.at(widest) for column in block]
    for number, cells in enumerate(zip(*(column.cells for column in block), strict=True)):
        parts = [fold(cell, width) for cell, width in zip(cells, widths, strict=True)]
        for row in range(max(map(len, parts))):
            texts = [part[row] if row < len(part) else "" for part in parts]
            shown = [c.line(t, w) for c, t, w in zip(block, texts, widths, strict=True)]
            yield TableLine(" " * INDENT + (" " * GAP).join(shown).rstrip(), head=number == 0)


def fold(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` letters: cut at spaces, else at points of a word."""
    found = [""]
    for word in text.split(" "):
        joined = f"{found[-1]} {word}" if found[-1] else word
        if len(joined) <= width:
            found[-1] = joined
            continue
        if found[-1]:
            found.append("")
        for piece in [word] if len(word) <= width else _PLACES.split(word):
            rest = piece
            if len(found[-1]) + len(rest) > width and found[-1]:
                found.append("")
            while len(rest) > width:
                found[-1], rest = rest[:width], rest[width:]
                found.append("")
            found[-1] += rest
    return found
