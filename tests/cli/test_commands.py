"""The command line: exit codes, and what goes to stdout and to stderr."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from intaglio import __version__
from intaglio.cli import doctor
from intaglio.cli.commands import app
from intaglio.errors import BundleError, ParityError

TERMINAL_CODES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def intaglio(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command as people do, off a terminal; its streams carry no control characters."""
    run = subprocess.run(
        [sys.executable, "-P", "-m", "intaglio", *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert not TERMINAL_CODES.search(run.stdout + run.stderr)
    return run


def invoke(*arguments: str | Path) -> Result:
    """Run the command within this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="intaglio")


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `intaglio doctor` raise `error`."""

    def diagnose() -> None:
        raise error

    monkeypatch.setattr(doctor, "diagnose", diagnose)


def test_help_is_a_result() -> None:
    run = intaglio("--help")

    assert (run.returncode, run.stderr) == (0, "")
    assert "Engrave a trained PyTorch model" in run.stdout


def test_version() -> None:
    assert invoke("--version").stdout == f"intaglio {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["engrave"], ["inspect"], ["inspect", "--what"], ["list", "cats"]]
)
def test_wrong_usage_exits_2_and_leaves_stdout_empty(arguments: list[str]) -> None:
    result = invoke(*arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: intaglio" in result.stderr


def test_a_fault_of_the_users_exits_1_with_one_message(tmp_path: Path) -> None:
    """No traceback, and the file in question is named."""
    run = intaglio("inspect", tmp_path / "absent")

    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("intaglio: ")
    assert str(tmp_path / "absent") in run.stderr
    assert "Traceback" not in run.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    run = intaglio("--debug", "inspect", tmp_path)

    assert run.returncode == 1
    assert "Traceback" in run.stderr


@pytest.mark.parametrize("order", [["--json", "inspect", "x"], ["inspect", "x", "--json"]])
def test_json_holds_the_error_too(order: list[str]) -> None:
    """Global options stand before the command or after it."""
    result = invoke(*order)
    error = json.loads(result.stdout)["error"]

    assert result.exit_code == error["exit_code"] == 1
    assert error["type"] == "BundleError"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BundleError("changed"), 1),
        (PermissionError(13, "Permission denied", "bundle"), 1),
        (ModuleNotFoundError("no torch", name="torch.onnx"), 1),
        (ParityError("moved"), 3),
        (KeyError("x"), 4),
        (ModuleNotFoundError("no such thing", name="intaglio.nothing"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, error)
    result = invoke("doctor")

    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("intaglio: ")
    assert "Traceback" not in result.stderr


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ModuleNotFoundError("no torch", name="torch"))

    assert "pip install 'intaglio[export]'" in invoke("doctor").stderr


def test_a_fault_of_ours_leaves_the_traceback_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("division by zero"))
    said = invoke("doctor").stderr
    log = Path(re.search(r"file (\S+\.log)", said)[1])  # type: ignore[index]
    text = log.read_text()
    log.unlink()

    assert "ZeroDivisionError: division by zero" in said
    assert "Traceback (most recent call last)" in text
    assert f"intaglio {__version__}" in text


def test_doctor_tells_what_can_be_done_here() -> None:
    report = json.loads(invoke("doctor", "--json").stdout)

    assert report["can"]["export"]["ok"]
    assert "CPUExecutionProvider" in report["targets"]["ort"]["providers"]
    assert "export: yes" in invoke("doctor").stdout
