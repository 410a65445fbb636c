"""A bundle is made again from the recipe that it ships, for every kind of source.

Nothing is typed twice: what to trace with is in the recipe, and verify reads the bundle's own.
"""

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from intaglio import Graph, export, models, verify
from intaglio.errors import InputError, OptionError, SourceError
from intaglio.exporter.options.recipe import Recipe
from intaglio.exporter.sources.load import load_source
from intaglio.models import llama
from intaglio.runtime.manifest import Manifest

FACTORY = f"{__name__}:Tagger"
FRAMES = {"frames": torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))}


class Tagger(nn.Module):
    """Frames to scores, with a head that another graph may take alone."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, width)
        self.head = nn.Linear(width, 2)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.body(frames).relu())
        return scores

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(hidden)
        return scores


class Cell(nn.Module):
    """A step with a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept = self.cell(x, memory)
        return kept.relu(), kept


Made = tuple[Any, dict[str, Any], dict[str, Any]]


def weights(folder: Path) -> Made:
    torch.save({"net": Tagger(2).state_dict(), "ema": Tagger(2).state_dict()}, folder / "w.pt")
    np.savez(folder / "in.npz", frames=FRAMES["frames"].numpy())
    told = {"model": FACTORY, "config": {"width": 2}, "key": "ema", "inputs": folder / "in.npz"}
    return folder / "w.pt", told, {"allow_code": True}


def of_intaglio(folder: Path) -> Made:
    config = llama.Config(hidden_size=8, intermediate_size=8, num_layers=1, num_heads=2)
    torch.save(models.find("llama").build(config).state_dict(), folder / "llama.pt")
    return folder / "llama.pt", {"model": "llama", "config": asdict(config)}, {}


def in_memory(folder: Path) -> Made:
    del folder
    picture = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    image = torch.rand(1, 3, 8, 9)
    return picture, {"inputs": [image], "axes": ["input:batchx3xheight=8..32x9"]}, {}


def of_methods(folder: Path) -> Made:
    del folder
    graphs = {"main": "forward", "score": Graph("score", inputs={"hidden": torch.randn(2, 5, 3)})}
    return Tagger(), {"graphs": graphs, "inputs": FRAMES}, {}


def cell(folder: Path) -> Made:
    del folder
    inputs = (torch.randn(2, 3), torch.zeros(2, 4))
    return Cell(), {"inputs": inputs, "states": {"memory": "output_1:0.5"}}, {}


def pickled(folder: Path) -> Made:
    with (folder / "m.pkl").open("wb") as file:
        pickle.dump(nn.Sequential(nn.Linear(4, 2)), file)
    consent = {"allow_pickle": True}
    return folder / "m.pkl", {"inputs": {"input": FRAMES["frames"]}, **consent}, consent


def graph(folder: Path) -> Made:
    told = {"inputs": FRAMES, "verify": False, "kv": "grow"}
    bundle = folder / "graph"
    export(nn.Sequential(nn.Linear(4, 2)), bundle, inputs={"input": FRAMES["frames"]}, verify=False)
    return bundle / "model.onnx", {n: x for n, x in told.items() if n == "kv"}, {}


def program(folder: Path) -> Made:
    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    captured = torch.export.export(Tagger(), (FRAMES["frames"],), dynamic_shapes=dynamic)
    torch.export.save(captured, folder / "m.pt2")
    consent = {"allow_pickle": True}
    return folder / "m.pt2", consent, consent


KINDS = [weights, of_intaglio, in_memory, of_methods, cell, pickled, graph, program]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_same_graphs_come_from_the_recipe_of_a_bundle(
    kind: Callable[[Path], Made], tmp_path: Path
) -> None:
    source, told, consent = kind(tmp_path)
    export(source, tmp_path / "a", verify=False, **told)

    export(source, tmp_path / "b", recipe=tmp_path / "a" / "recipe.toml", **consent)

    first, second = (Manifest.load(tmp_path / name / "manifest.json") for name in "ab")
    assert first.files == second.files
    assert first.recipe == second.recipe
    report = verify(tmp_path / "a", source, steps=3, keep=False, **consent)
    assert report.passed


def test_what_was_loaded_already_is_in_the_recipe_too(tmp_path: Path) -> None:
    """A source knows how it was loaded."""
    path, told, _ = weights(tmp_path)

    export(load_source(path, **told), tmp_path / "a", verify=False)

    recipe = Recipe.read(tmp_path / "a" / "recipe.toml")
    assert (recipe.model, recipe.key, recipe.config) == (FACTORY, "ema", {"width": 2})
    assert recipe.inputs == {
        "frames": {
            "dtype": "float32",
            "shape": [2, 5, 4],
            "low": pytest.approx(FRAMES["frames"].amin((0, 1)).tolist()),
            "high": pytest.approx(FRAMES["frames"].amax((0, 1)).tolist()),
        }
    }


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle of weights that code builds, and the weights."""
    folder = tmp_path_factory.mktemp("tagger")
    path, told, _ = weights(folder)
    export(path, folder / "a", verify=False, **told)
    return folder / "a", path


def test_code_that_a_bundle_names_runs_where_it_is_allowed(tagger: tuple[Path, Path]) -> None:
    """The message says what would run, as it is typed."""
    bundle, path = tagger
    with pytest.raises(SourceError, match=f"--allow-code, or name it with --model {FACTORY}$"):
        verify(bundle, path, keep=False)
    with pytest.raises(OptionError, match="allow it with --allow-code"):
        verify(bundle, path, recipe=bundle / "recipe.toml", keep=False)
    assert verify(bundle, path, recipe=bundle / "recipe.toml", steps=2, allow_code=True).passed


def test_no_range_and_no_path_of_a_bundle_decides_what_is_tried(
    tagger: tuple[Path, Path],
) -> None:
    """One that says that all is zero is compared on other values; a recipe of the user's counts."""
    from intaglio.exporter.proving.as_made import as_made

    bundle, _ = tagger
    entry = json.loads((bundle / "manifest.json").read_text())
    frames = {"dtype": "float32", "shape": [2, 5, 4], "low": 0.0, "high": 0.0}
    entry["recipe"] |= {"inputs": {"frames": frames}, "tolerance": {"output": 9.0}, "steps": 1}
    poor = Manifest.from_json(entry)
    drawn: Any = as_made({"allow_code": True}, poor).inputs
    assert drawn["frames"].abs().min() > 0

    entry["recipe"] |= {"inputs": "/etc/passwd", "config": "/etc/passwd"}
    assert as_made({"allow_code": True}, Manifest.from_json(entry)).inputs is None

    said = as_made({"allow_code": True}, poor, Recipe(inputs={"frames": frames}))
    assert said.inputs == {"frames": frames}


@pytest.mark.parametrize(
    ("own", "typed", "option"),
    [
        ({"adapter": {"a": "b/a.npz"}}, {"adapter": {"a": "mine.npz"}}, "--adapter a=b/a.npz"),
        ({"states": {"h": "y:b/s.npz"}}, {"states": {"h": "y:mine.npz"}}, "--state h=y:b/s.npz"),
    ],
)
def test_no_file_of_a_bundle_changes_what_it_is_compared_with(
    own: dict[str, Any], typed: Any, option: str
) -> None:
    """An adapter beside the bundle could make the source what the bundle was made to be."""
    from intaglio.exporter.proving.as_made import as_made

    source = {"name": "w.pt", "sha256": "0" * 64, "format": "torch"}
    manifest = Manifest(source=source, graphs={}, files={}, recipe=own)
    with pytest.raises(OptionError, match=f"type it: {option}"):
        as_made({}, manifest)
    assert as_made(typed, manifest).given().items() >= typed.items()
    assert as_made({}, manifest, Recipe.of(own, "mine")).given().items() >= own.items()


def test_data_is_known_by_its_hash(tmp_path: Path) -> None:
    """A recipe says which data it was made with, wherever that lies, and never goes without it."""
    layer = nn.Linear(64, 32)
    rows = np.random.default_rng(0).standard_normal((4, 6, 64)).astype(np.float32)
    calib = {"input": rows}
    learned: dict[str, Any] = {"passes": ["gptq:bits=4,group=32"], "verify": False}
    export(layer, tmp_path / "a", inputs=calib, calib=calib, **learned)
    recipe = tmp_path / "a" / "recipe.toml"

    with pytest.raises(OptionError, match=r"data of the SHA-256 .* Give it with --cal"):
        export(layer, tmp_path / "b", recipe=recipe)
    report = export(layer, tmp_path / "b", recipe=recipe, calib={"input": rows + 1}, dry_run=True)
    assert "other data than the recipe was made with" in report.notes[0]
    export(layer, tmp_path / "b", recipe=recipe, calib=calib)
    assert Manifest.load(tmp_path / "a/manifest.json").files == (
        Manifest.load(tmp_path / "b/manifest.json").files
    )


def test_data_that_is_not_there_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_text("no arrays")
    for name, said in (("absent.npz", "does not exist"), ("bad.npz", "no file of numpy.savez")):
        with pytest.raises(InputError, match=said):
            export(tmp_path / "absent.pt", tmp_path / "a", data=tmp_path / name)
