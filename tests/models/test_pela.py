"""PELA: two layers in the place of one, the loss of their training, and a checkpoint of them."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from intaglio.errors import SourceError
from intaglio.exporter.sources.load import load_source
from intaglio.models import llama, save
from intaglio.models.pela import Pela, factor, features, main
from intaglio.models.tuning import of_text

CONFIG = llama.Config(hidden_size=24, intermediate_size=40, num_layers=2, num_heads=2)
TEXT = b"SELECT name FROM cities WHERE size > 100;\n" * 20


def base() -> Any:
    torch.manual_seed(0)
    module = llama.build(CONFIG).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


def test_the_rank_keeps_a_share_of_the_entries_and_the_best_of_them() -> None:
    """The error is that of the singular values that are left out; the bias is the second's."""
    layer = nn.Sequential(nn.Linear(30, 20))
    weight, bias = (p.detach().clone() for p in layer.parameters())
    assert factor(layer, 2.0) == ["0"]
    assert list(layer.state_dict()) == ["0.0.weight", "0.1.weight", "0.1.bias"]
    first, second = layer.get_parameter("0.0.weight"), layer.get_parameter("0.1.weight")
    assert first.shape == (30 * 20 // (2 * 50), 30)
    left = torch.linalg.svdvals(weight)[len(first) :].norm()
    torch.testing.assert_close((second @ first - weight).norm(), left)
    assert torch.equal(layer.get_parameter("0.1.bias"), bias)
    small = nn.Sequential(nn.Linear(30, 9))
    assert factor(small, 2.0) == []
    with pytest.raises(SourceError, match=r"no rank left at the ratio 40; at most 12 leaves"):
        factor(nn.Sequential(nn.Linear(30, 20)), 40.0)


def test_the_loss_is_that_of_the_paper() -> None:
    """The task, features of every block, logits, and the largest entry that moved."""
    module, teacher = base(), base()
    made = factor(module, 2.0)
    assert len(made) == 14
    rows = torch.randint(256, (2, 9))
    recipe = Pela(features=0.5, logits=0.25, slack=0.01)
    with features(module) as own, features(teacher) as theirs:
        logits, wanted = module(rows[:, :-1]), teacher(rows[:, :-1])
    expected = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:])
    expected += 0.5 * sum((a - b).square().mean() for a, b in zip(own, theirs, strict=True)) / 2
    expected += 0.25 * (logits - wanted).square().mean()
    torch.testing.assert_close(recipe._loss(module, teacher, rows), expected)
    whole = {path: teacher.get_parameter(f"{path}.weight") for path in made}
    far = [
        (module.get_submodule(path)(torch.eye(weight.shape[1])).T - weight).abs().max() - 0.01
        for path, weight in whole.items()
    ]
    moved = sum(x * x for x in far) / len(far)
    torch.testing.assert_close(recipe._moved(module, whole), moved)


def test_training_stays_near_to_the_blocks_of_the_original() -> None:
    """As the task alone does not, in as many steps; all parameters move."""
    rows = torch.frombuffer(bytearray(TEXT[:64]), dtype=torch.uint8).long()[None]
    far = []
    for weight in (0.0, 100.0):
        module = base()
        recipe = Pela(features=weight, perturbation=0.0, steps=10, rate=1e-2)
        recipe.tune(module, of_text(TEXT, 4, 16))
        teacher = base()
        with torch.no_grad(), features(module) as own, features(teacher) as theirs:
            module(rows)
            teacher(rows)
        far.append(F.mse_loss(own[-1], theirs[-1]).item())
    assert far[1] < far[0] / 2
    assert not module.training
    factored = base()
    factor(factored, recipe.ratio)
    pairs = zip(module.parameters(), factored.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in pairs)


def test_a_checkpoint_on_disk_is_made_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two layers where the file has two factors."""
    save(tmp_path / "base.pt", "llama", CONFIG, base())
    (tmp_path / "text").write_bytes(TEXT)
    files = [str(tmp_path / name) for name in ("base.pt", "text", "low.pt")]
    given = ["pela", files[0], "--text", files[1], "--out", files[2], "--steps", "1"]
    monkeypatch.setattr(sys, "argv", given)
    main()
    source = load_source(tmp_path / "low.pt")
    assert any("14 projections came as two factors" in note for note in source.notes)
    module: Any = source.module
    assert module.layers[0].mlp.up_proj[0].weight.shape == (24 * 40 // (2 * 64), 24)
