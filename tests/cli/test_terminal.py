"""What every command prints fits a terminal, and every help has groups, examples, one spelling."""

import fcntl
import os
import pty
import re
import shlex
import struct
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from command_line import invoke
from typer.testing import CliRunner

from intaglio.cli import commands, console
from intaglio.cli.frame import app
from intaglio.cli.help import COMMANDS, EVERYWHERE, GROUPS, REST, group_of

WIDTHS = (80, 100)
PROGRAM: Any = typer.main.get_command(app)
NAMES = sorted(PROGRAM.commands)
# What they print takes minutes to make, or a GPU, or is no table.
OTHERS = {"adapter", "assemble", "build", "interpret", "merge", "sign", "subnet", "triton"}


def tables(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("  ")]


@pytest.fixture(scope="module")
def lines(bundle: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command lines of every command that prints a table of a bundle, or of what there is."""
    folder = tmp_path_factory.mktemp("arrays")
    np.savez(folder / "ids.npz", input_ids=np.zeros((1, 4), np.int64))
    return [
        "list",
        "list -v",
        *(f"list {kind}" for kind in ("ops", "passes", "models", "targets", "kernels")),
        f"doctor {bundle}",
        f"inspect {bundle}",
        f"inspect {bundle} -v --context 16,4096",
        f"inspect --diff {bundle} {bundle}",
        f"verify {bundle} --against {checkpoint} --steps 5",
        f"run {bundle} --inputs {folder / 'ids.npz'}",
        f"export {checkpoint} -o {folder / 'out'} --no-verify",
        f"profile {bundle} --context 3 --prompt-length 4 --duration 0 --iterations 1 --no-ops",
    ]


def test_no_line_of_a_table_is_wider_than_the_terminal(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, line in enumerate(lines):
        width = WIDTHS[place % 2]
        monkeypatch.setattr(console, "width_of", lambda stream, w=width: w)  # noqa: ARG005
        result = invoke(*shlex.split(line))

        assert result.exit_code == 0, line
        assert max(map(len, tables(result.stdout)), default=0) <= width, line
        assert tables(result.stdout) or "--diff" in line, line


def test_each_command_is_measured_or_prints_by_what_folds(lines: list[str]) -> None:
    """`Console.table` writes the tables, and tests/cli/test_tables.py holds it to the width."""
    others = set(NAMES) - {line.split()[0] for line in lines}

    assert others == OTHERS
    for name in OTHERS:
        text = (Path(commands.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        assert not re.search(r"ljust|rjust|:[<>]\d|print\(", text), name


def test_a_terminal_says_how_wide_it_is() -> None:
    """A real one of 60 columns: every line of `list` keeps to it."""
    child, place = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-P", "-m", "intaglio", "list", "-v"])
    fcntl.ioctl(place, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 60, 0, 0))
    shown = b""
    while True:
        try:
            piece = os.read(place, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(place)

    assert os.waitpid(child, 0)[1] == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert "gated-deltanet" in text
    assert max(map(len, text.splitlines())) <= 60


@pytest.mark.parametrize("name", NAMES)
def test_help_has_groups_and_examples_and_fits(name: str) -> None:
    """One spelling of each option, with dashes; a default in one form; no line too wide."""
    for width in WIDTHS:
        shown = invoke(name, "--help", width=width).stdout
        assert max(map(len, shown.splitlines())) <= width
    titles = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert titles[-2:] == [EVERYWHERE, "Examples"]
    before = shown[: shown.index(f"{EVERYWHERE}:")]
    options = re.findall(r"^  (?:-\w, )?--([^\s,]+)", before, re.MULTILINE)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", option) for option in options)
    assert not re.search(r"default: \(|\{|<(int|float)", shown)


@pytest.mark.parametrize("name", [*NAMES, None])
def test_examples_are_commands_that_can_be_typed(name: str | None) -> None:
    command = PROGRAM if name is None else PROGRAM.commands[name]
    examples = command.epilog.splitlines()

    assert examples
    for example in examples:
        program, chosen, *arguments = shlex.split(example)
        assert program == "intaglio"
        assert name in (None, chosen)
        options = [option for each in PROGRAM.commands[chosen].params for option in each.opts]
        given = [a.partition("=")[0] for a in arguments if a.startswith("-")]
        assert set(given) <= {*options, "--help"}, example


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("list", "modles"), "'kernels', perhaps 'models'."),
        (("export", "a.pt", "-o", "b", "--kv", "statik"), "'grow', perhaps 'static'."),
        (("list", "quux"), "'quux' is not one of 'ops', 'passes'"),
        (("exprot",), "Did you mean 'export'"),
        (("run", "a", "--promt", "b"), "--prompt"),
    ],
)
def test_what_is_typed_wrong_is_told_with_what_was_perhaps_meant(
    typed: tuple[str, ...], said: str
) -> None:
    result = invoke(*typed, width=200)

    assert result.exit_code == 2
    assert said in result.stderr
    assert "Value error" not in result.stderr


def test_every_group_holds_options_that_there_are() -> None:
    """A renamed option does not fall out of its group unseen."""
    known = {
        (name, option.removeprefix("--"))
        for name, command in PROGRAM.commands.items()
        for each in command.params
        for option in each.opts
    } | {(name, "help") for name in NAMES}

    for title, names in GROUPS.items():
        for option in names.split():
            assert any(group_of(c, o) == title for c, o in known if o == option), option
    assert {name for names in COMMANDS.values() for name in names.split()} == set(NAMES)
    assert group_of("run", "inputs") == REST


@pytest.mark.parametrize("spelling", ["--max-shapes", "--maxShapes"])
def test_the_words_of_trtexec_are_understood(spelling: str, tmp_path: Path) -> None:
    result = invoke("export", "absent.pt", "-o", str(tmp_path / "x"), spelling, "nonsense")

    assert "nonsense" in result.stderr
    assert "No such option" not in result.stderr


def test_a_shell_completes_commands_and_options() -> None:
    """The script that it is given asks the program itself."""
    env = {"_INTAGLIO_COMPLETE": "complete_bash", "COMP_CWORD": "1", "COMP_WORDS": "intaglio in"}
    found = CliRunner(env=env).invoke(app, [], prog_name="intaglio").stdout.split()

    assert found == ["interpret", "inspect"] or sorted(found) == ["inspect", "interpret"]
