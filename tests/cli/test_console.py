"""Results on stdout, everything else on stderr, and nothing but one JSON object under --json."""

import json
import re

import pytest

from intaglio.cli.console import Console, Flags


def test_flags_before_and_after_the_command_count_alike() -> None:
    assert Flags(json=True) | Flags(quiet=True) == Flags(json=True, quiet=True)


def test_text_and_tables_go_to_stdout_messages_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Markup characters stand as they are, and off a terminal no line of text is folded."""
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


def test_names_from_a_bundle_do_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Escape sequences in what is printed lose their escape character."""
    console = Console(Flags())
    console.text("\x1b[2Jname")
    console.table([["\x1b]0;title\x07"]], ["name"])
    console.message("\x9b31mred")

    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "".join(capsys.readouterr()))


@pytest.mark.parametrize("end", ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_a_name_makes_no_line_of_its_own(end: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of results stay one; what goes on in a message is indented."""
    console, name = Console(Flags()), f"a{end}parity   holds"
    console.text(f"\nsource   {name}")
    console.table([[name, "1"]], ["name", "size"])
    console.message(f"note: {name}")
    console.fail(ValueError(), 1, name)

    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4
    assert not any(line.startswith("parity") for line in (out + err).splitlines())


@pytest.mark.parametrize("mark", "\u061c\u200e\u200f\u202a\u202e\u2066\u2069\t\x7f\x1b")
def test_a_name_turns_no_text_around(mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(Flags())
    console.text(mark)
    console.table([[mark]], ["name"])
    console.message(mark)

    assert mark not in "".join(capsys.readouterr())


def test_json_leaves_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(Flags(json=True))
    console.text("for people")
    console.table([["a"]], ["name"])
    console.stream("piece")
    console.result({"answer": "é"})

    assert json.loads(capsys.readouterr().out) == {"answer": "é"}


def test_quiet_silences_progress_and_messages(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(Flags(quiet=True))
    console.message("hello")
    with console.progress() as report:
        report("trace", 0.5)

    assert capsys.readouterr() == ("", "")
