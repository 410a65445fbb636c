"""The map of one input, from a bundle, and what `intaglio interpret` writes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from intaglio.cli.frame import app
from intaglio.errors import BundleError, InputError
from intaglio.exporter.export import export
from intaglio.runtime import Bundle
from intaglio.runtime.interpreter import Interpreter

SHAPE = (1, 6, 5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    )
    out = tmp_path_factory.mktemp("interpreter") / "bundle"
    inputs, axes = (torch.rand(2, *SHAPE),), {"input": "batchx1x6x5"}
    report = export(
        module, out, inputs=inputs, axes=axes, passes=["linear-interpreter"], check_passes=True
    )
    assert report.parity is not None
    assert report.parity.passed
    return out


def test_rows_columns_and_singular_vectors_are_of_one_map(bundle: Path) -> None:
    """W x0 + r = y0; and numpy finds the same singular values and vectors."""
    found, x = Interpreter.load(bundle), np.random.default_rng(0).random(SHAPE, np.float32)
    y = found.record(x)
    apart = [found.columns(range(at, at + 3)) for at in range(0, 30, 3)]  # by the graph
    columns = np.concatenate(apart).reshape(30, 3).T
    rows = found.rows(range(3)).reshape(3, 30)
    np.testing.assert_allclose(columns, rows, atol=1e-6)
    np.testing.assert_allclose(rows @ x.ravel() + found.bias, y, atol=1e-6)
    np.testing.assert_allclose(found.replay(x[None])[0], y, atol=1e-6)
    singular = found.singular(2)
    left, values, right = np.linalg.svd(rows.astype(np.float64))
    np.testing.assert_allclose(singular.values, values[:2], rtol=1e-4)
    for mine, theirs in ((singular.inputs, right), (singular.outputs, left.T)):
        across = np.abs((mine.reshape(2, -1) * theirs[:2]).sum(1))
        np.testing.assert_allclose(across, 1, atol=1e-3)


def test_more_columns_than_outputs_are_what_they_are_one_by_one(bundle: Path) -> None:
    """By the rows, which are those of the input that was recorded last."""
    found, rng = Interpreter.load(bundle), np.random.default_rng(0)
    many = rng.standard_normal((7, *SHAPE)).astype(np.float32)
    for _ in range(2):
        found.record(rng.standard_normal(SHAPE).astype(np.float32))
        apart = np.concatenate([found.replay(each[None]) for each in many])
        np.testing.assert_allclose(found.replay(many), apart, atol=1e-6)
    with pytest.raises(InputError):
        found.replay(many[:, :, :5])
    with pytest.raises(InputError):
        found.replay(many.astype(np.int64))


def test_the_main_graph_is_as_it_was_and_verified_alone(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert set(opened.graphs) == {"main", "record", "replay", "transpose"}
    assert [s.name for s in opened.manifest.main.outputs] == ["output"]
    derived = {n for n, each in opened.manifest.graphs.items() if each.derived}
    assert derived == {"record", "replay", "transpose"}
    replayed = opened.manifest.graphs["replay"]
    assert replayed.inputs[0].shape == ("batch", *SHAPE)  # which profiles know how to choose
    assert all(spec.shape[0] == 1 for spec in replayed.inputs[1:])
    identities = opened.manifest.main.passes
    details = next(each["details"] for each in identities if each["name"] == "linear-interpreter")
    assert max(details.values()) < 1e-5


def test_interpret_writes_arrays_and_pictures(bundle: Path, tmp_path: Path) -> None:
    pixels = np.arange(30, dtype=np.uint8).reshape(6, 5) * 8
    Image.fromarray(pixels).save(tmp_path / "image.png")
    command = ["interpret", str(bundle), str(tmp_path / "image.png"), "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(app, [*command, "--row", "2", "--singular", "1", "--json"])

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["pictures"] == ["row_2.png", "singular_input_0.png"]
    arrays = np.load(tmp_path / "o" / "map.npz")
    found = Interpreter.load(bundle)
    found.record(pixels[None].astype(np.float32) / 255)
    np.testing.assert_allclose(arrays["rows"], found.rows([2]))
    with Image.open(tmp_path / "o" / "row_2.png") as image:
        drawn = np.asarray(image)
    assert drawn.shape == (6, 5)
    assert {int(drawn.min()), int(drawn.max())} & {0, 255}


def test_what_does_not_fit_is_told(bundle: Path, tmp_path: Path) -> None:
    found = Interpreter.load(bundle)
    with pytest.raises(InputError, match="Nothing is recorded yet"):
        found.columns([0])
    with pytest.raises(InputError, match="Nothing is recorded yet"):
        found.rows([0])
    with pytest.raises(InputError, match=r"shape \[1, 5, 6\]; the map is of \[1, 6, 5\]"):
        found.record(np.zeros((1, 5, 6), np.float32))
    found.record(np.zeros(SHAPE, np.float32))
    with pytest.raises(InputError, match="no entry 3; there are 0 to 2"):
        found.rows([3])
    with pytest.raises(InputError, match="4 singular vectors are asked for; there are 1 to 3"):
        found.singular(4)
    with pytest.raises(BundleError, match="no output 'logits'; there are: output"):
        Interpreter.load(bundle, "logits")
    Image.new("L", (6, 6)).save(tmp_path / "other.png")
    command = ["interpret", str(bundle), str(tmp_path / "other.png"), "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "has the shape [1, 6, 6]" in " ".join(result.output.split())


def test_a_bundle_without_the_graphs_is_told_how_to_get_them(tmp_path: Path) -> None:
    inputs, axes = (torch.rand(2, 1, 4, 4),), {"input": "batchx1x4x4"}
    export(nn.Sequential(nn.Conv2d(1, 1, 3)), tmp_path / "b", inputs=inputs, axes=axes)
    with pytest.raises(BundleError, match="Export it with --pass linear-interpreter"):
        Interpreter.load(tmp_path / "b")
