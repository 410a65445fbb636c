"""What the command line prints and where: results to stdout, everything else to stderr.

Off a terminal nothing carries control characters, and no line is folded.  With `--json` stdout
holds exactly one JSON object, whatever happens.
"""

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from intaglio.runtime.plain_text import indented, one_line
from intaglio.version import __version__

Report = Callable[[str, float | None], None]  # what is being done, and the part of it done


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
        """Print a line of the result for people; nothing under `--json`.

        Newlines before it are empty lines; within it, it has none.
        """
        if not self.flags.json:
            words = line.lstrip("\n")
            _print(self._out, "\n" * (len(line) - len(words)) + one_line(words))

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
        rows = [head, *([one_line(cell) for cell in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for number, row in enumerate(rows):
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            line = f"  {'  '.join(cells)}".rstrip()
            _print(self._out, line, style=None if number else "dim")

    def message(self, text: str) -> None:
        """Tell people on stderr, unless they asked for quiet."""
        if not self.flags.quiet:
            _print(self._err, indented(text))

    def detail(self, text: str) -> None:
        """Tell people who asked for more."""
        if self.flags.verbose:
            self.message(text)

    @contextmanager
    def progress(self) -> Iterator[Report]:
        """Show what is being done: a bar on a terminal, else a line for each stage."""
        if self.flags.quiet:
            yield lambda what, done: None  # noqa: ARG005
        elif self._err.is_terminal:
            with _bars(self._err) as bars:
                yield _bar(bars)
        else:
            yield _lines(self.message)

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


def _print(console: RichConsole, text: str, style: str | None = None) -> None:
    console.print(text, soft_wrap=True, style=style)


def _bars(console: RichConsole) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def _bar(bars: Progress) -> Report:
    bars.add_task("")
    (task,) = bars.tasks

    def report(what: str, done: float | None) -> None:
        task.description = one_line(what)
        task.total = None if done is None else 1.0
        task.completed = done or 0.0

    return report


def _lines(say: Callable[[str], None]) -> Report:
    """Tell each stage, and what is done within one (``stage: detail``) once a second at most."""
    spoken, latest = 0.0, ""

    def report(what: str, _done: float | None) -> None:
        nonlocal spoken, latest
        now = time.monotonic()
        begins = what.partition(":")[0] != latest.partition(":")[0]
        if begins or (what != latest and now - spoken >= 1):
            spoken, latest = now, what
            say(f"{what} ...")

    return report
