"""A place that cannot be written is told before anything is read that would be worked on for it."""

import shutil
from pathlib import Path

import pytest
from conditioned_bundle import write
from typer.testing import CliRunner

from intaglio.cli import commands
from intaglio.cli.frame import app

# Of what is not there: a command that read it first would say so.
COMMANDS = [
    "merge none none",
    "subnet none --budget 3bits --data none",
    "assemble none",
    "adapter none none",
    "interpret none none",
]


def said(command: str, *words: Path | str) -> str:
    """The one line that a command says that fails by its user's mistake."""
    assert commands
    result = CliRunner().invoke(app, ["-q", *command.split(), *map(str, words)])
    assert result.exit_code == 1, result.output
    (line,) = result.output.splitlines()
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_before_any_work(command: str, tmp_path: Path) -> None:
    """A file among its folders; a place that is taken, where it is not given up by --force."""
    there = tmp_path / "map.npz"
    there.write_text("kept")
    place = tmp_path if command.startswith("interpret") else there

    below = said(command, "-o", there / "a" / "b")
    assert "cannot be written" in below
    assert below.endswith(f"{there} is a file, not a folder.")
    assert f"{there} exists. Replace it with --force" in said(command, "-o", place)
    assert said(command, "-o", place, "--force").startswith("intaglio: none")
    assert there.read_text() == "kept"


def test_a_repository_before_its_bundle_is_hashed(tmp_path: Path) -> None:
    """A weight that was changed is found later than that nothing can be written."""
    bundle = write(tmp_path / "lm")
    for file in bundle.glob("*.onnx"):
        file.write_bytes(b"changed")
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "lm").mkdir(parents=True)

    assert said(f"triton {bundle}", "-o", tmp_path / "file").endswith("is a file, not a folder.")
    taken = f"triton {bundle} -o {tmp_path / 'taken'}"
    assert "lm exists. Replace it with --force" in said(taken)
    assert "lm exists and is no model" in said(taken, "--force")


def test_a_rehearsal_tells_what_the_export_would(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for more in ([], ["--dry-run"]):
        line = said("export none", "-o", tmp_path / "file" / "b", *more)
        assert line.endswith("is a file, not a folder.")


def test_outputs_before_a_bundle_is_run(tmp_path: Path) -> None:
    assert "is a folder" in said("run none --inputs none", "-o", tmp_path)


def test_a_page_of_losses_before_the_models_are_merged(tmp_path: Path) -> None:
    words = ("merge none none --data none", "-o", tmp_path / "m.pt", "--report", tmp_path)

    assert said(*words).endswith("is a folder. Give the name of a file.")


def test_a_signature_before_the_bundle_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a bundle may be mounted for reading alone."""
    bundle = shutil.copytree(write(tmp_path / "lm"), tmp_path / "copy")

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("intaglio.places.tempfile.TemporaryFile", refuse)
    line = said(f"sign {bundle} --key none")
    assert "nothing can be made in" in line
    assert "Permission denied" in line
