"""What holds for every model: shapes, causality, gradients, its config and its checkpoints."""

import json
import math
from argparse import ArgumentTypeError
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import torch.utils._device
from killed import after_calls

from intaglio.errors import SourceError
from intaglio.models import FORMAT, MODELS, Model, find, save
from intaglio.models.training import held_out_digest, place, validate

CHECKPOINTS = Path(__file__).parents[2] / "models" / "checkpoints"
LOSSES = json.loads((CHECKPOINTS / "losses.json").read_text())


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


PRESETS = [pytest.param((m, p), id=f"{m.name}-{p}") for m in MODELS for p in m.presets]


def takes_tokens(pair: tuple[Model, str]) -> bool:
    """Whether a model maps tokens, and nothing beside them, to logits of the next."""
    model, preset = pair
    inputs = model.inputs(model.presets[preset], 1, 2, torch.Generator())
    return model.axes is None and set(inputs) == {"input_ids"}


@pytest.fixture(params=PRESETS)
def model(request: pytest.FixtureRequest) -> tuple[Model, str]:
    pair: tuple[Model, str] = request.param
    return pair


@pytest.fixture(params=[p for p in PRESETS if takes_tokens(p.values[0])])  # type: ignore[arg-type]
def language_model(request: pytest.FixtureRequest) -> tuple[Model, str]:
    pair: tuple[Model, str] = request.param
    return pair


def built(model: tuple[Model, str]) -> torch.nn.Module:
    torch.manual_seed(0)
    module: torch.nn.Module = model[0].build(model[0].presets[model[1]])
    return module


def test_no_token_is_seen_before_its_time(language_model: tuple[Model, str]) -> None:
    """A changed token changes nothing before it, in its own row alone, and something from it on."""
    model = language_model
    module = built(model).eval()
    config = model[0].presets[model[1]]
    inputs = model[0].inputs(config, 2, 70, torch.Generator().manual_seed(0))
    changed = {name: value.clone() for name, value in inputs.items()}
    changed["input_ids"][0, 66] += 1
    with torch.no_grad():
        before, after = module(**inputs), module(**changed)
    assert before.shape == (2, 70, config.vocab_size)
    assert torch.equal(before[0, :66], after[0, :66])
    assert torch.equal(before[1], after[1])
    assert (before[0, 66:] != after[0, 66:]).any(-1).all()


def test_gradients_reach_every_parameter(language_model: tuple[Model, str]) -> None:
    """No parameter is left out of the forward pass."""
    model = language_model
    module = built(model)
    config = model[0].presets[model[1]]
    inputs = model[0].inputs(config, 2, 9, torch.Generator().manual_seed(0))
    module(**inputs).square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def of_kind(model: Model, kind: type) -> str | None:
    """The first value of a config that is of this kind."""
    hints = get_type_hints(model.config)
    return next((f.name for f in fields(model.config) if hints[f.name] is kind), None)


def needed(model: tuple[Model, str]) -> dict[str, Any]:
    """Values of a preset, so that only what a test changes can be at fault."""
    config = model[0].presets[model[1]]
    return {f.name: getattr(config, f.name) for f in fields(config)}


def test_a_config_that_does_not_fit_is_told(model: tuple[Model, str]) -> None:
    """Unknown values are named with their nearest neighbour."""
    name = of_kind(model[0], int)
    assert name is not None
    with pytest.raises(SourceError, match=rf"unknown '{name}_' \(perhaps '{name}'\)"):
        model[0].configure({**needed(model), f"{name}_": 8})


@pytest.mark.parametrize("value", ["8", 0, -8, 8.0, True, None, [8]])
def test_a_config_of_another_kind_is_told(model: tuple[Model, str], value: object) -> None:
    """Sizes and counts are integers of at least 1."""
    size, number = of_kind(model[0], int), of_kind(model[0], float)
    assert size is not None
    with pytest.raises(SourceError, match=rf"has {size} = .*should be an integer of at least"):
        model[0].configure({**needed(model), size: value})
    if number is not None:
        with pytest.raises(SourceError, match=rf"{number} = .* should be a number"):
            model[0].configure({**needed(model), number: math.nan})
        assert getattr(model[0].configure({**needed(model), number: 1}), number) == 1


def test_a_model_takes_no_memory_on_the_device_without(model: tuple[Model, str]) -> None:
    """So a file is held to a config before the config's sizes are allocated."""
    # PyTorch lists once what such a context affects; transformers, where it was the first to ask,
    # had another torch.linspace in place.
    torch.utils._device._device_constructors.cache_clear()
    with torch.device("meta"):
        module = built(model)
    real = built(model).state_dict()

    assert all(value.is_meta for value in module.state_dict().values())
    assert {k: v.shape for k, v in module.state_dict().items()} == {
        k: v.shape for k, v in real.items()
    }


def test_an_unknown_model_is_told_with_those_there_are() -> None:
    """The nearest name is offered."""
    with pytest.raises(SourceError, match=r"no model 'lama', perhaps 'llama'.*gated-deltanet, "):
        find("lama")
    assert find("gla").name == "gla"


def test_save_keeps_ties_and_names_the_model(tmp_path: Path) -> None:
    """Two names of one weight share their storage in the file."""
    llama = find("llama")
    config = llama.configure({"hidden_size": 16, "num_layers": 1, "tie_embeddings": True})
    save(tmp_path / "m.pt", "llama", config, llama.build(config))
    saved = torch.load(tmp_path / "m.pt", weights_only=True)
    assert (saved["format"], saved["model"]) == (FORMAT, "llama")
    state = saved["state_dict"]
    assert state["lm_head.weight"].data_ptr() == state["embed_tokens.weight"].data_ptr()
    assert llama.configure(saved["config"]) == config


@pytest.mark.parametrize("name", sorted(LOSSES["checkpoints"]))
def test_the_recorded_loss_of_a_checkpoint_holds(name: str) -> None:
    """Within 1 % on the text it was recorded on; other Python versions hold another text."""
    path = CHECKPOINTS / f"{name}.pt"
    assert path.stat().st_size < 3_000_000
    saved = torch.load(path, weights_only=True)
    model = find(saved["model"])
    module = model.build(model.configure(saved["config"]))
    module.load_state_dict(saved["state_dict"])
    same_text = held_out_digest() == LOSSES["held_out_sha256"]
    recorded = LOSSES["checkpoints"][name]["held_out_loss"]
    assert math.isclose(validate(module.eval()), recorded, rel_tol=0.01 if same_text else 0.05)


DRAWN = ("bib", "graphgps", "implicit", "lie_conv", "longmem", "moment_probing")


@pytest.mark.parametrize("name", DRAWN)
def test_the_recorded_loss_on_drawn_data_holds(name: str) -> None:
    """Data come of formulas, so the loss does not depend on what is installed."""
    path = CHECKPOINTS / f"{name}.pt"
    assert path.stat().st_size < 1_000_000
    saved = torch.load(path, weights_only=True)
    model = find(saved["model"])
    recorded = LOSSES["drawn"][name]
    recipe: Any = model.recipes.get(recorded["preset"], model.recipe)
    config = model.configure(saved["config"])
    assert config == model.presets[recorded["preset"]]
    module = model.build(config)
    module.load_state_dict(saved["state_dict"])
    assert recipe.unit == recorded["unit"]
    assert math.isclose(recipe.held_out(module.eval()), recorded["held_out_loss"], rel_tol=0.01)


def test_a_checkpoint_is_the_old_or_the_new_one_when_its_writer_is_killed(tmp_path: Path) -> None:
    """And nothing is left of the one that was killed, once another is written."""
    path, module = tmp_path / "model.pt", torch.nn.Linear(2, 2)

    def write(size: int) -> None:
        save(path, "linear", {"size": size}, module)

    seen = {
        torch.load(path, weights_only=True)["config"]["size"]
        for _ in after_calls(lambda: write(1), lambda: write(2), step=10)
    }
    assert seen == {1, 2}
    write(3)
    assert [*tmp_path.iterdir()] == [path]


def test_what_is_trained_has_a_place_before(tmp_path: Path) -> None:
    """Training takes minutes."""
    assert place(str(tmp_path / "new" / "gla.pt")) == tmp_path / "new" / "gla.pt"
    with pytest.raises(ArgumentTypeError, match="is a folder"):
        place(str(tmp_path))
