"""Options that do not fit, and recipes that would run code: one message, exit code 1, no trace."""

from pathlib import Path

import pytest
import torch
from command_line import assert_refused, invoke

MODEL = "whole_net:Net"
CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 4)

    def forward(self, input_ids):
        return self.embed(input_ids)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run, with weights and the code of their module."""
    (tmp_path / "whole_net.py").write_text(CODE)
    torch.save({"embed.weight": torch.ones(8, 4)}, tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "lama"], "no model 'lama', perhaps 'llama'"),
        (["--model", "nowhere:Net"], "no module 'nowhere'"),
        (["--model", "whole_net:Nett"], "whole_net has no callable 'Nett'"),
        (["--model", "./whole_net.py:Net"], "name its module"),
        (["--model", MODEL, "--config", "absent.json"], "absent.json cannot be read"),
        (["--model", MODEL, "--key", "ema"], "nothing under --key 'ema'"),
        ([], "does not say which model"),
        (["--model", MODEL, "--pass", "x.py:f"], "--allow-code"),
    ],
)
def test_options_that_do_not_fit_a_whole_checkpoint(
    options: list[str], message: str, folder: Path
) -> None:
    assert (folder / "model.pt").exists()
    assert_refused(invoke("export", "model.pt", "-o", "out", *options), message)


def test_a_compute_capability_is_a_whole_number() -> None:
    for given, line in (("8.7,sm_90", "--sm 87,90"), ("orin", "as 87,90")):
        said = " ".join(invoke("export", "model.pt", "-o", "out", "--sm", given).output.split())
        assert f"--sm: '{given}' is no list of compute capabilities" in said
        assert line in said


def test_a_recipe_by_command_runs_no_code(folder: Path) -> None:
    """Of the standard library neither: `os:system` with a config is a command line."""
    recipe = folder / "recipe.toml"
    recipe.write_text(f"model = 'os:system'\nconfig = {{command = 'mkdir {folder}/ran'}}")

    for more in ([], ["--dry-run"]):
        given = ("export", folder / "model.pt", "-o", folder / "out", "--recipe", recipe)
        assert_refused(invoke(*given, *more), r"'os:system'.*--allow-code")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "words",
    ["run b --prompt a", "verify b --against m", "merge a b -o c", "subnet s -o c --budget 3bits"],
)
def test_a_seed_is_no_negative_number(words: str) -> None:
    result = invoke(*words.split(), "--seed", "-1")
    assert result.exit_code == 2
    assert "greater than or equal to 0" in result.stderr
