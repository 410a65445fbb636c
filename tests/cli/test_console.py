"""Results on stdout, everything else on stderr, and nothing but one JSON object under --json."""

import json
import time

import pytest

from intaglio.cli.console import Console, Flags


def test_flags_before_and_after_the_command_count_alike() -> None:
    assert Flags(json=True) | Flags(quiet=True) == Flags(json=True, quiet=True)


def test_text_and_tables_go_to_stdout_messages_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Markup characters stand as they are, and no line is folded."""
    console = Console(Flags())
    console.text("shape [batch, time] " + "x" * 300)
    console.table([["[red]", "1"]], ["name", "size"])
    console.message("working [1/2]")

    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()] == [
        ["shape", "[batch,", "time]", "x" * 300],
        ["name", "size"],
        ["[red]", "1"],
    ]
    assert err == "working [1/2]\n"


def test_json_leaves_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(Flags(json=True))
    console.text("for people")
    console.table([["a"]], ["name"])
    console.stream("piece")
    console.result({"answer": "é"})

    assert json.loads(capsys.readouterr().out) == {"answer": "é"}


def test_progress_off_a_terminal_is_plain_lines_a_second_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done within a second is not told, and nothing is told twice."""
    clock = iter([0.0, 0.5, 1.5, 2.0, 3.0, 4.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with Console(Flags()).progress() as report:
        for stage in ("load", "trace", "passes", "passes", "passes"):
            report(stage, None)

    assert capsys.readouterr() == ("", "trace ...\npasses ...\n")


def test_quiet_silences_progress_and_messages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", iter([0.0, 9.0]).__next__)
    console = Console(Flags(quiet=True))
    console.message("hello")
    with console.progress() as report:
        report("trace", 0.5)

    assert capsys.readouterr() == ("", "")
