"""A source is a module with its weights and inputs, however file, model and config are given."""

import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from intaglio import models
from intaglio.errors import OptionError, SourceError
from intaglio.exporter.export import export
from intaglio.exporter.sources.checkpoint import read_checkpoint
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import EXAMPLE_BATCH, EXAMPLE_TIME
from intaglio.models import FORMAT, MODELS, Model, save
from intaglio.runtime.bundle import Bundle

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, vocab, width=4):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids, labels=None):
        return self.head(self.drop(self.embed(input_ids)))

def features(width):
    return nn.Linear(width, width), {"input": torch.ones(1, 1, width)}
"""

MODEL = "user_nets:Net"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the user's code in it."""
    (tmp_path / "user_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    for name in ("user_nets", "planted"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def weights() -> dict[str, Tensor]:
    return {"embed.weight": torch.linspace(-1, 1, 44).reshape(11, 4)}


def leaves_of(result: Tensor | dict[str, Tensor]) -> list[Tensor]:
    return list(result.values()) if isinstance(result, dict) else [result]


def logits(module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        y: Tensor = module(**inputs)
    return y


def test_a_bare_state_dict_needs_model_and_config_and_nothing_else(folder: Path) -> None:
    """It gives a module ready to trace, and says what it was made from."""
    torch.save({"model": weights(), "optimizer": {"lr": 0.1}}, folder / "model.pt")

    source = load_source("model.pt", model=MODEL, config={"vocab": 11})

    assert torch.equal(source.module.get_parameter("embed.weight"), weights()["embed.weight"])
    assert not source.module.training
    assert not any(p.requires_grad for p in source.module.parameters())
    assert source.aliases == {"head.weight": "embed.weight"}
    assert source.dynamic == {"input_ids": {0: "batch", 1: "time"}}
    assert (source.name, source.model, source.config) == ("model.pt", MODEL, {"vocab": 11})
    assert source.sha256 == hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest()
    assert logits(source.module, source.inputs).shape == (EXAMPLE_BATCH, EXAMPLE_TIME, 11)


def test_every_container_and_config_gives_the_same_module(folder: Path) -> None:
    """Safetensors with the tied weight stored once, torch.save with wrapper prefixes."""
    state = {"head.weight": weights()["embed.weight"]}
    safetensors.torch.save_file(state, folder / "model.safetensors")
    torch.save({f"_orig_mod.module.{k}": v for k, v in state.items()}, folder / "model.bin")
    (folder / "config.json").write_text(json.dumps({"vocab": 11}))
    (folder / "config.toml").write_text("vocab = 11")

    first = load_source("model.safetensors", model=MODEL, config="config.json")
    second = load_source("model.bin", model=MODEL, config=Path("config.toml"))

    inputs = first.random_inputs(2, 5, 0)
    assert torch.equal(logits(first.module, inputs), logits(second.module, inputs))
    assert first.config == second.config == {"vocab": 11}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: str(model.name))
def test_a_checkpoint_of_ours_needs_nothing_beside_it(folder: Path, model: Model) -> None:
    """Every model of ours is saved with its name and config, and comes back as it was."""
    config = next(iter(model.presets.values()))
    module = model.build(config).eval()
    save(folder / "model.pt", model.name, config, module)

    source = load_source("model.pt")

    assert (source.model, source.format) == (model.name, FORMAT)
    for name, weight in module.state_dict().items():
        assert torch.equal(source.module.state_dict()[name], weight)
    if model.axes is None and model.graphs is None:
        inputs = source.random_inputs(2, 5, 0)
        found, wanted = (leaves_of(each(**inputs)) for each in (source.module, module))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert all(axes == {0: "batch", 1: "time"} for axes in source.dynamic.values())


@dataclass(frozen=True, kw_only=True)
class Sizes:
    width: int = 4
    kinds: int = 5


class Tinted(nn.Module):
    """A signal along time, tinted by a label that holds for the whole of it."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tint = nn.Embedding(sizes.kinds, sizes.width)
        self.mix = nn.GRU(sizes.width, sizes.width, batch_first=True)

    def forward(self, signal: Tensor, label: Tensor) -> Tensor:
        y: Tensor = self.mix(signal + self.tint(label)[:, None])[0]
        return y


class Pooled(nn.Module):
    """A picture of any size, as its mean."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, sizes.width, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        y: Tensor = self.conv(image).relu().mean((-2, -1))
        return y


def tinted(sizes: Sizes, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    signal = torch.randn(batch, time, sizes.width, generator=generator)
    return {"signal": signal, "label": torch.arange(batch) % sizes.kinds}


def pooled(_: Sizes, batch: int, _time: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"image": torch.randn(batch, 3, 8, 9, generator=generator)}


TINTED = Model(
    name="tinted",
    summary="",
    config=Sizes,
    build=Tinted,
    inputs=tinted,
    axes=lambda sizes: {"signal": f"batch,time,{sizes.width}", "label": "batch"},
    presets={},
    recipe=None,
    source="",
)
POOLED = replace(
    TINTED,
    name="pooled",
    build=Pooled,
    inputs=pooled,
    axes=lambda _: {"image": "batchx3xheight=4..64xwidth=4..64"},
)


@pytest.mark.parametrize("model", [TINTED, POOLED], ids=lambda model: str(model.name))
def test_a_model_of_ours_may_name_the_axes_of_its_inputs(
    folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without time is a condition beside one with it, and without any all are taken whole."""
    monkeypatch.setattr(models, "MODELS", (model,))
    save(folder / "model.pt", model.name, Sizes(), model.build(Sizes()))

    source = load_source("model.pt")
    report = export(source, folder / "bundle", steps=8, check_passes=True)

    assert report.parity is not None
    assert report.parity.passed
    graph = Bundle.open(folder / "bundle").manifest.graphs["main"]
    if model is TINTED:
        assert source.bounds == {"label": 5}
        assert [each.name for each in graph.conditions] == ["label"]
    else:
        assert source.spans["height"].most == 64
        assert graph.whole
    with pytest.raises(OptionError, match="--axes says nothing about the model"):
        load_source("model.pt", axes={"image": "batch"})


def test_a_config_that_does_not_fit_a_model_of_ours_is_told(folder: Path) -> None:
    """Before any weight is looked at."""
    torch.save(weights(), folder / "model.pt")

    with pytest.raises(SourceError, match=r"unknown 'hiden_size' \(perhaps 'hidden_size'\)"):
        load_source("model.pt", model="llama", config={"hiden_size": 3})
    with pytest.raises(SourceError, match="no model 'lama', perhaps 'llama'"):
        load_source("model.pt", model="lama")


def test_a_factory_may_give_its_own_example_inputs(folder: Path) -> None:
    """Of any batch and time: what is traced has more than one of each."""
    torch.save(nn.Linear(6, 6).state_dict(), folder / "model.pt")

    source = load_source("model.pt", model="user_nets:features", config={"width": 6})

    assert source.inputs["input"].shape == (EXAMPLE_BATCH, EXAMPLE_TIME, 6)
    assert source.random_inputs(1, 1, 3)["input"].shape == (1, 1, 6)


def test_a_named_checkpoint_gives_way_to_what_the_user_says(folder: Path) -> None:
    """And the notes tell."""
    named = {"format": FORMAT, "model": "llama", "config": {"vocab": 3}, "state_dict": weights()}
    torch.save(named, folder / "model.pt")

    source = load_source("model.pt", model=MODEL, config={"vocab": 11})

    assert source.notes == (
        f"model.pt names the model 'llama'; built as '{MODEL}' instead.",
        "model.pt names another config, which was not used.",
    )


def test_code_that_a_checkpoint_names_runs_only_if_allowed(folder: Path) -> None:
    """Naming a factory on the command line is consent, finding it in a file is not."""
    (folder / "planted.py").write_text("import os; os.mkdir('ran')\nfrom user_nets import Net")
    named = {"format": FORMAT, "model": "planted:Net", "config": {"vocab": 11}}
    torch.save({**named, "state_dict": weights()}, folder / "model.pt")

    with pytest.raises(SourceError, match=r"asks to be built by the code .*--allow-code"):
        load_source("model.pt")
    assert not (folder / "ran").exists()

    assert load_source("model.pt", allow_code=True).model == "planted:Net"
    assert (folder / "ran").exists()


@pytest.mark.parametrize("allowed", [False, True])
def test_the_working_directory_is_no_place_for_code_without_consent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    """Whatever a library imports while it reads a file, a folder from elsewhere must not give."""
    paths: list[list[str]] = []

    def read(path: Path, **_: Any) -> Any:
        paths.append(list(sys.path))
        return read_checkpoint(path)

    monkeypatch.setattr("intaglio.exporter.sources.kinds.weights_file.read_checkpoint", read)
    torch.save(weights(), folder / "model.pt")
    load_source("model.pt", model=MODEL, config={"vocab": 11}, allow_pickle=allowed)

    assert (str(folder.resolve()) in paths[0]) is allowed


def test_weights_without_a_model_ask_for_one(folder: Path) -> None:
    """With both ways to name it."""
    torch.save(weights(), folder / "model.pt")

    with pytest.raises(SourceError, match=r"--model NAME .*--model package\.module:factory"):
        load_source("model.pt")


def test_a_choice_among_state_dicts_is_noted(folder: Path) -> None:
    """--key makes it another one."""
    averaged = {name: value + 1 for name, value in weights().items()}
    torch.save({"ema": averaged, "model": weights()}, folder / "model.pt")

    first = load_source("model.pt", model=MODEL, config={"vocab": 11})
    second = load_source("model.pt", model=MODEL, config={"vocab": 11}, key="ema")

    assert first.notes == ("model.pt: weights taken from 'model', not from 'ema'.",)
    assert torch.equal(second.module.get_parameter("embed.weight"), averaged["embed.weight"])
