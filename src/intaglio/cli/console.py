"""What the command line prints and where: results to stdout, everything else to stderr.

Tables fold to the terminal, and are nowhere wider than 100 letters.  Off a terminal nothing
carries control characters, and no other line is folded.  With `--json` stdout holds exactly one
JSON object, whatever happens.
"""

import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, TextIO

from rich.console import Console as RichConsole

from intaglio.runtime.plain_text import indented, one_line
from intaglio.version import __version__

from .progress import Report, lines, redrawn, within
from .tables import fold, lines_of

WIDEST, NARROWEST = 100, 40  # letters of a line
_LABEL = re.compile(r"\S+ {2,}|\s*")  # before a line's text, which goes on under itself


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The global options."""

    json: bool = False
    verbose: bool = False
    quiet: bool = False
    debug: bool = False

    def __or__(self, other: "Flags") -> "Flags":
        """Flags given before the command's name and after it count alike."""
        return Flags(
            json=self.json or other.json,
            verbose=self.verbose or other.verbose,
            quiet=self.quiet or other.quiet,
            debug=self.debug or other.debug,
        )


class Console:
    """The two streams of one command, under its global options."""

    def __init__(self, flags: Flags) -> None:
        self.flags = flags
        self._out = _rich(sys.stdout)
        self._err = _rich(sys.stderr)

    def result(self, value: Mapping[str, Any]) -> None:
        """Print the one JSON object of a command under `--json`; nothing otherwise."""
        if self.flags.json:
            self.write(json.dumps(value) + "\n")  # in ASCII, which every terminal can print

    def text(self, line: str = "") -> None:
        """Print a line of the result for people, folded on a terminal; nothing under `--json`.

        Newlines before it are empty lines; within it, it has none.
        """
        if self.flags.json:
            return
        words = line.lstrip("\n")
        shown = one_line(words)
        if self._out.is_terminal:
            shown = _folded(shown, self.width)
        _print(self._out, "\n" * (len(line) - len(words)) + shown)

    def paragraph(self, label: str, text: str) -> None:
        """Print a label and what stands after it, folded everywhere; nothing under `--json`."""
        if not self.flags.json:
            _print(self._out, _folded(one_line(f"{label:<7}  {text}"), self.width))

    def stream(self, text: str) -> None:
        """Print a piece of a result as it comes; nothing under `--json`."""
        if not self.flags.json:
            self.write(text)

    def write(self, text: str) -> None:
        """Write to stdout as it stands."""
        self._out.file.write(text)
        self._out.file.flush()

    def table(self, rows: Sequence[Sequence[str]], head: Sequence[str]) -> None:
        """Print rows in columns, indented under the line before; nothing under `--json`."""
        if self.flags.json or not rows:
            return
        cells = [[one_line(cell) for cell in row] for row in (head, *rows)]
        for line in lines_of(cells[0], cells[1:], self.width):
            _print(self._out, line.text, style="dim" if line.head else None)

    @property
    def width(self) -> int:
        """Letters of the longest line: those of the terminal, as far as people read them."""
        return width_of(self._out.file)

    def message(self, text: str) -> None:
        """Tell people on stderr, unless they asked for quiet."""
        if not self.flags.quiet:
            _print(self._err, indented(text))

    def detail(self, text: str) -> None:
        """Tell people who asked for more."""
        if self.flags.verbose:
            self.message(text)

    @contextmanager
    def progress(self, stage: str = "") -> Iterator[Report]:
        """Show what is being done and how far: one line that is redrawn, or one now and then.

        `stage` is that of all that is told, where the command has but one.
        """
        if self.flags.quiet:
            yield lambda what, done: None  # noqa: ARG005
        elif self._err.is_terminal:
            with redrawn(self._err, width_of(self._err.file)) as report:
                yield within(stage, report)
        else:
            yield within(stage, lines(self.message))

    def fail(self, error: BaseException, code: int, said: str) -> int:
        """Say what went wrong, under `--json` to machines as well; return the exit code."""
        if self.flags.debug:
            traceback.print_exception(error)
        _print(self._err, indented(f"intaglio: {said}"))
        fault = {"type": type(error).__name__, "message": said, "exit_code": code}
        self.result({"error": fault})
        return code

    def fail_as_bug(self, error: Exception) -> int:
        """Keep the traceback of our own mistake in a file, and say where it is."""
        with tempfile.NamedTemporaryFile(
            "w",
            prefix="intaglio-",
            suffix=".log",
            delete=False,
            encoding="utf-8",
            errors="backslashreplace",
        ) as log:
            log.write(f"intaglio {__version__}, Python {sys.version}, {sys.platform}\n")
            log.write(f"{sys.argv}\n\n")
            traceback.print_exception(error, file=log)
        said = (
            f"{type(error).__name__}: {error}\nThis is a fault of intaglio, not of your input. "
            f"Please report it with the file {log.name}, which holds the command line, the "
            "versions and the traceback."
        )
        return self.fail(error, 4, said)


def _rich(stream: TextIO) -> RichConsole:
    return RichConsole(
        file=stream, force_terminal=stream.isatty(), markup=False, highlight=False, emoji=False
    )


def width_of(stream: IO[str]) -> int:
    """Letters of the longest line for a stream: those of its terminal, but not too many."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # no terminal
        columns = 0
    return max(NARROWEST, min(columns, WIDEST)) if columns else WIDEST


def _print(console: RichConsole, text: str, style: str | None = None) -> None:
    console.print(text, soft_wrap=True, style=style)


def _folded(line: str, width: int) -> str:
    """A line in several where it is longer than the terminal is wide, each under its text."""
    before = _LABEL.match(line)
    indent = before.end() if before else 0
    parts = fold(line[indent:], max(width - indent, NARROWEST // 2))
    return line[:indent] + ("\n" + " " * indent).join(parts)
