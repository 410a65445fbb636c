"""A recipe says all that decides what is in a bundle, in a file that people can read and edit."""

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from intaglio.errors import OptionError, PassError
from intaglio.exporter.export import export
from intaglio.exporter.options.recipe import Recipe
from intaglio.exporter.options.user_passes import as_entry
from intaglio.passes.exact.fold_constants import FoldConstants
from intaglio.runtime.manifest import Manifest

FULL = Recipe(
    model="nets:Net",
    config={"width": 3, "rates": [0.5, 1e-07], "name": 'a "b"', "deep": {"x": True}},
    key="ema.module",
    axes={"mel": ["batch", 80, "time"]},
    passes=[as_entry("fold-constants:limit=5"), as_entry("mine.py:rewrite")],
    kv="grow",
    shapes={"input_ids": {"minimum": [1, 1], "optimum": [1, 4], "maximum": [1, 9]}},
    steps=9,
    tolerance={"logits": 0.001},
)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("recipe", [FULL, Recipe(), Recipe(config={"rope": None})])
def test_a_recipe_comes_back_from_its_file_as_it_was(recipe: Recipe, tmp_path: Path) -> None:
    """Whatever is in it; the manifest says the same words."""
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())

    assert Recipe.read(path).to_json() == recipe.to_json() == tomllib.loads(path.read_text())


def test_a_bundle_is_made_again_from_its_own_recipe(tmp_path: Path) -> None:
    """Byte for byte, and options of the caller go before those of the recipe."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    inputs = {"input": torch.randn(2, 4, 3)}
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    export(layer, first, inputs=inputs, steps=7, passes=[FoldConstants(limit=9)], portable=False)

    export(layer, second, inputs=inputs, recipe=first / "recipe.toml")
    export(layer, third, inputs=inputs, recipe=first / "recipe.toml", steps=5)

    assert files(first) == files(second)
    manifest = Manifest.load(third / "manifest.json")
    assert manifest.recipe == tomllib.loads((third / "recipe.toml").read_text())
    assert (manifest.recipe["steps"], manifest.recipe["portable"]) == (5, False)
    assert manifest.recipe["passes"] == [{"name": "fold-constants", "options": {"limit": 9}}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 5\nstep = 3", "line 2: unknown key 'step'; perhaps 'steps'"),
        ("[[passes]]\nname = 'x'\noption = {}", "line 3: unknown key 'option'; perhaps 'options'"),
        ("kv = 'static'\nsteps = 'many'", "line 2: steps should not be 'many'"),
        ("ort_accuracy = 'finer'", "line 1: ort_accuracy should not be 'finer'"),
        ("targets = 'ort'", "line 1: targets should not be 'ort'"),
        ("steps = ", "is not TOML"),
    ],
)
def test_mistakes_are_told_with_their_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)

    with pytest.raises(OptionError, match=message):
        Recipe.read(path)
    with pytest.raises(OptionError, match="cannot be read"):
        Recipe.read(tmp_path / "absent.toml")


def test_code_needs_consent_each_time_and_functions_of_programs_their_program() -> None:
    """A recipe from elsewhere runs nothing by itself."""
    with pytest.raises(PassError, match="--allow-code"):
        FULL.build_passes(allow_code=False)
    with pytest.raises(OptionError, match="function of a program"):
        Recipe(passes=[{"name": "training.tidy"}]).build_passes(allow_code=True)
    with pytest.raises(PassError, match="options of the pass 'rtn' in the recipe are 3; give"):
        Recipe(passes=[{"name": "rtn", "options": 3}]).build_passes(allow_code=True)


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("read", [str, Recipe.read])
def test_a_factory_that_a_recipe_names_runs_only_if_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any], dry_run: bool
) -> None:
    """A recipe comes with a bundle: naming code in it is nobody's consent, nor to rehearse it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "planted_net", raising=False)
    (tmp_path / "planted_net.py").write_text(
        "import os; os.mkdir('ran')\nfrom torch.nn import Linear"
    )
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "model.pt")
    path = tmp_path / "recipe.toml"
    path.write_text("model = 'planted_net:Linear'\nconfig = {in_features = 3, out_features = 2}")
    given: dict[str, Any] = {"inputs": {"input": np.ones((2, 4, 3), np.float32)}, "verify": False}

    with pytest.raises(OptionError, match=r"the code 'planted_net:Linear'.*--allow-code"):
        export("model.pt", "out", recipe=read(path), dry_run=dry_run, **given)
    assert not (tmp_path / "ran").exists()

    given = {**given, "model": "planted_net:Linear"} if dry_run else {**given, "allow_code": True}
    export("model.pt", "out", recipe=read(path), dry_run=dry_run, **given)
    assert (tmp_path / "ran").exists()
