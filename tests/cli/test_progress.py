"""Progress: on a terminal one line that is redrawn, else a line now and then."""

import io
import re
import sys
import time

import pytest

from intaglio.cli.console import Console, Flags
from intaglio.cli.progress import ProgressStage, clock

CLEAR_LINE = "\x1b[2K"


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def test_off_a_terminal_a_stage_is_a_line_and_what_is_within_it_ever_fewer(
    capsys: pytest.CaptureFixture[str], seconds: Clock
) -> None:
    """A stage of a minute is told about at 2, 6, 14 and 30 seconds, with what is left."""
    with Console(Flags()).progress() as report:
        report("trace", None)
        report("passes", None)
        for second in range(60):
            seconds.now = 100.0 + second
            report(f"passes: layer {second}, {second + 1} of 60", second / 60)
        report("write", None)

    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[:2] == ["trace ...", "passes ..."]
    assert lines[2] == "passes: layer 2, 3 of 60 ... 3%, 0:02, about 0:58 left"
    assert [int(re.findall(r"layer (\d+)", line)[0]) for line in lines[2:-1]] == [2, 6, 14, 30]
    assert lines[-1] == "write ..."


def test_a_command_of_one_stage_says_it_once(
    capsys: pytest.CaptureFixture[str],
    seconds: Clock,  # noqa: ARG001  which stands still
) -> None:
    with Console(Flags()).progress("verify") as report:
        report("source", None)
        for token in range(512):
            report(f"tokens in parts of 512 x 1, {token} of 512", token / 512)
    assert capsys.readouterr().err.splitlines() == ["verify: source ..."]


def test_what_is_left_is_that_of_the_stage_and_of_what_it_has_done(seconds: Clock) -> None:
    """Nothing where nothing is done yet, and what went before in another stage does not count."""
    stage = ProgressStage()
    stage.tell("load", None)
    seconds.now += 50
    assert stage.left is None
    assert stage.tell("verify: a", 0.5)
    seconds.now += 10
    assert not stage.tell("verify: b", 0.75)
    assert stage.left == pytest.approx(10)
    assert not stage.tell("verify: c", 0.0), "another round of the same stage"
    assert stage.left is None


def test_on_a_terminal_it_is_one_line_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names what is being done and how far it is, and is as wide as the terminal at most."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Console(Flags()).progress() as report:
        report("verify", None)
        report(f"verify: tokens\x1b[2J {'x' * 300}", 0.5)

    shown = terminal.getvalue()
    assert "verify: tokens" in shown
    assert "50%" in shown
    assert "\x1b[2J" not in shown
    assert CLEAR_LINE in shown[shown.rindex("verify") :]
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert max(map(len, re.split(r"[\r\n]", plain))) <= 100


@pytest.mark.parametrize(
    ("given", "told"), [(0.2, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (7325, "2:02:05")]
)
def test_a_clock(given: float, told: str) -> None:
    assert clock(given) == told
