"""Merging from files to a file: what comes out, and what does not fit together."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.merge import MergeReport, merge
from intaglio.models import find, llama, save
from intaglio.report.merging import page

CONFIG = llama.Config(vocab_size=256, hidden_size=16, intermediate_size=24, num_layers=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    for seed in range(3):
        torch.manual_seed(seed)
        module = find("llama").build(CONFIG)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
        save(folder / f"{seed}.pt", "llama", CONFIG, module)
    np.savez(folder / "ids.npz", input_ids=np.random.default_rng(0).integers(0, 256, (4, 20)))
    return [folder / f"{seed}.pt" for seed in range(3)]


@pytest.fixture(scope="module")
def merged(models: list[Path]) -> MergeReport:
    folder = models[0].parent
    return merge(models[:2], folder / "merged.pt", data=folder / "ids.npz")


def test_it_is_a_checkpoint_of_the_same_model(models: list[Path], merged: MergeReport) -> None:
    """At t = 1 the second model in another order, which gives what the second gives."""
    out = merged.out.with_name("second.pt")
    merge(models[:2], out, t=1.0)
    ids = torch.randint(256, (2, 7))
    outputs, states = [], []
    for path in (out, models[1]):
        states.append(torch.load(path))
        module = find("llama").build(CONFIG)
        module.load_state_dict(states[-1]["state_dict"])
        with torch.no_grad():
            outputs.append(module.eval()(ids))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    up = "layers.0.mlp.up_proj.weight"
    assert states[0]["model"] == "llama"
    assert not torch.equal(states[0]["state_dict"][up], states[1]["state_dict"][up])


def test_matching_brings_models_nearer(merged: MergeReport) -> None:
    ((before, after),) = merged.distances
    assert after < before
    ((before, after),) = merged.alignments
    assert after > before
    assert merged.moved[0]
    assert merged.groups > 1


def test_the_path_has_the_losses_of_both_ends(merged: MergeReport) -> None:
    assert merged.before is not None
    assert merged.after is not None
    for path in (merged.before, merged.after):
        assert (path.loss[0], path.loss[-1]) == (merged.losses[0][0], merged.losses[1][0])
    assert merged.losses[2][0] == pytest.approx(merged.after.loss[5], rel=1e-5)
    middle = [x - (1 - t) * merged.after.loss[0] - t * merged.after.loss[-1]
              for t, x in zip(merged.after.t, merged.after.loss, strict=True)]  # fmt: skip
    assert merged.after.barrier == max(middle)


def test_its_page_shows_the_path(merged: MergeReport) -> None:
    text = page(merged.to_json())
    assert "Loss between two models" in text
    assert "<svg" in text
    assert "1.pt" in text


def test_more_models_are_averaged(models: list[Path], tmp_path: Path) -> None:
    report = merge(models, tmp_path / "three.pt", matched=False)
    states = [torch.load(path)["state_dict"] for path in models]
    found = torch.load(tmp_path / "three.pt")["state_dict"]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, sum(s[name] for s in states) / 3)
    assert report.groups == 0


def test_models_of_other_kinds_are_told_apart(models: list[Path], tmp_path: Path) -> None:
    other = llama.Config(vocab_size=256, hidden_size=16, intermediate_size=28, num_layers=1)
    save(tmp_path / "other.pt", "llama", other, find("llama").build(other))
    with pytest.raises(SourceError, match=r"gate_proj\.weight is \[24, 16\] in .* \[28, 16\]"):
        merge([models[0], tmp_path / "other.pt"], tmp_path / "out.pt")


def test_what_cannot_be_asked(models: list[Path], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="at least two"):
        merge(models[:1], tmp_path / "out.pt")
    with pytest.raises(OptionError, match="from 0"):
        merge(models[:2], tmp_path / "out.pt", t=1.5)
    with pytest.raises(OptionError, match="--seed is -1"):
        merge(models[:2], tmp_path / "out.pt", seed=-1)
    with pytest.raises(OptionError, match="a place between two"):
        merge(models, tmp_path / "out.pt", t=0.3)
    with pytest.raises(OptionError, match="exists"):
        merge(models[:2], models[2])
    with pytest.raises(OptionError, match="is one of the models"):
        merge(models[:2], models[0])
    with pytest.raises(OptionError, match="is a folder, and no model's"):
        merge(models[:2], tmp_path)
    with pytest.raises(OptionError, match="which is copied"):
        merge([tmp_path, models[0]], tmp_path / "in" / "it")
