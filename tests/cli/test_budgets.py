"""Options of a search say something only where there is one."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from intaglio.cli.frame import app


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--jobs 2", 1, "--jobs is of a search, which --budget asks for"),
        ("--jobs 2 --target trt", 1, "none.pt: there is no such file"),
        ("--jobs 2 --pass low-rank:by='svd'", 1, "none.pt: there is no such file"),
        ("--ray auto --pass low-rank:by='svd'", 1, "none.pt: there is no such file"),
        ("--ray auto --target trt", 1, "which --budget asks for, or of layers of --pass"),
        ("--jobs 2 --seed 1 --target trt", 1, "--seed is of a search, which --budget asks for"),
        ("--budget 3bits", 2, "needs --calib"),
        ("--budget 3bits --calib text.txt --bits *=3", 2, "--bits says them already"),
        ("--budget 3bits --calib text.txt --evaluations 3", 2, "give two numbers"),
        ("--budget 3apples --calib text.txt", 1, "--budget 3apples: give bits a weight"),
        ("--bits 3", 2, "'3' is not GLOB=N"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: str, code: int, said: str, tmp_path: Path
) -> None:
    command = ["-q", "export", "none.pt", "-o", str(tmp_path / "out"), *words.split()]
    result = CliRunner().invoke(app, command)

    assert result.exit_code == code, result.output
    assert said in result.output
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_taken_is_told_before_the_search(tmp_path: Path) -> None:
    command = ["-q", "export", "none.pt", "--budget", "3bits", "--calib", "none.txt", "-o"]
    result = CliRunner().invoke(app, [*command, str(tmp_path)])

    assert result.exit_code == 1
    assert "exists and is not a bundle" in result.output
