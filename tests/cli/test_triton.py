"""`intaglio triton` writes a repository, and says what it cannot."""

import json
from pathlib import Path

from conditioned_bundle import write
from typer.testing import CliRunner

from intaglio.cli.frame import app


def test_a_bundle_becomes_a_model(tmp_path: Path) -> None:
    """Its options are parameters of the model."""
    bundle, out = write(tmp_path / "lm"), tmp_path / "repository"
    words = ["--json", "triton", bundle, "-o", out, "--rows", 3, "--store", "s", "--save-every", 2]
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["models"] == [str(out / "lm")]
    config = (out / "lm" / "config.pbtxt").read_text()
    for key, value in [("rows", 3), ("streams", 48), ("store", "s"), ("save_every", 2)]:
        assert f'key: "{key}"\n  value {{\n    string_value: "{value}"' in config


def test_what_it_refuses(tmp_path: Path) -> None:
    bundle = str(write(tmp_path / "lm"))
    out = ["-o", str(tmp_path / "repository")]
    lacks = CliRunner().invoke(app, ["triton", bundle, *out, "--save-every", "2"])
    assert (lacks.exit_code, "give --store as well" in lacks.output) == (2, True)
    unfit = CliRunner().invoke(app, ["triton", bundle, *out, "--implicit-state"])
    assert (unfit.exit_code, "it has conditions" in unfit.output) == (1, True)
