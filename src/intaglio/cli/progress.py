"""How far a command is: on a terminal one line that is redrawn, else a line now and then.

What is told is a stage, what is done within it, and the part of the stage that is done:
``verify: tokens in parts of 1 x 512``, 0.25.  The time that is left is that of the stage, by what
it has taken so far.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.live import Live
from rich.text import Text

from intaglio.runtime.plain_text import one_line

Report = Callable[[str, float | None], None]  # what is being done, and the part of it done

FIRST, MOST = 2.0, 60.0  # seconds between lines within a stage: ever more, up to a minute
_BAR = 16  # letters
_SPINNER = "|/-\\"


class ProgressStage:
    """What is being done, and since when."""

    def __init__(self) -> None:
        self.what = ""
        self.done: float | None = None
        self._since = self._began = time.monotonic()
        self._done_before = 0.0

    def tell(self, what: str, done: float | None) -> bool:
        """Take what is told; return whether another stage began."""
        begins = what.partition(":")[0] != self.what.partition(":")[0]
        if begins or (done is not None and self.done is not None and done < self.done):
            self._since, self._done_before = time.monotonic(), done or 0.0
        if begins:
            self._began = time.monotonic()
        self.what, self.done = what, done
        return begins

    @property
    def taken(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float | None:
        """Seconds that what is done in the stage will take, None where that is not known."""
        if self.done is None or self.done <= self._done_before:
            return None
        pace = (time.monotonic() - self._since) / (self.done - self._done_before)
        return pace * (1 - self.done)

    def facts(self) -> list[str]:
        """How much is done, since when, and how long it takes still."""
        share = [] if self.done is None else [f"{self.done:.0%}"]
        left = self.left
        ahead = [] if left is None or left < 1 else [f"about {clock(left)} left"]
        return [*share, clock(self.taken), *ahead]


def clock(seconds: float) -> str:
    """Seconds as a clock shows them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def redrawn(console: RichConsole, width: int) -> Iterator[Report]:
    """One line at the end of a terminal, which goes away; what is printed meanwhile is above it."""
    stage = ProgressStage()
    width = min(width, console.width) - 1  # a full line would begin another

    def line() -> Text:
        if not stage.what:
            return Text("")
        turn = _SPINNER[int(time.monotonic() * 8) % len(_SPINNER)]
        bar = "" if stage.done is None else _bar(stage.done)
        after = f"  {bar}{'  '.join(stage.facts())}"
        room = max(width - len(after) - 3, 8)
        what = one_line(stage.what)
        short = what if len(what) <= room else f"{what[: room - 3]}..."
        return Text(f"{turn} {short}{after}", no_wrap=True, overflow="crop")

    with Live(console=console, get_renderable=line, transient=True, refresh_per_second=8):
        yield lambda what, done: _take(stage, what, done)


def _take(stage: ProgressStage, what: str, done: float | None) -> None:
    stage.tell(what, done)


def _bar(done: float) -> str:
    full = round(min(max(done, 0.0), 1.0) * _BAR)
    return f"[{'#' * full}{'.' * (_BAR - full)}]  "


def within(stage: str, report: Report) -> Report:
    """Tell `report` what is done as parts of one stage; none where `stage` is empty."""
    return (lambda what, done: report(f"{stage}: {what}", done)) if stage else report


def lines(say: Callable[[str], None]) -> Report:
    """Tell each stage, and what is done within one ever less often."""
    stage = ProgressStage()
    spoken, pause = 0.0, FIRST

    def report(what: str, done: float | None) -> None:
        nonlocal spoken, pause
        latest = stage.what
        begins = stage.tell(what, done)
        now = time.monotonic()
        if begins:
            pause = FIRST
            say(f"{what} ...")
        elif what != latest and now - spoken >= pause:
            pause = min(2 * pause, MOST)
            say(f"{what} ... {', '.join(stage.facts())}")
        else:
            return
        spoken = now

    return report
