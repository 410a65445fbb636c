"""The subnet of a budget: its file gives what the supernet gives at these bits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.export import export
from intaglio.exporter.options.recipe import Recipe
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.subnet import SubnetReport, make_subnet, search_subnet
from intaglio.jobs import Where
from intaglio.models import llama
from intaglio.models.supernet import Supernet, restore, save, set_bits
from intaglio.models.tuning import of_text

CONFIG = llama.Config(vocab_size=256, hidden_size=32, intermediate_size=48, num_layers=1)


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = llama.build(CONFIG).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    how = Supernet(group=32, rank=2, steps=4, period=2, rate=0.01)
    how.tune(module, of_text(bytes(range(256)) * 4, 4, 16))
    folder = tmp_path_factory.mktemp("supernet")
    save(folder / "super.pt", "llama", CONFIG, module)
    ids = np.random.default_rng(0).integers(0, 256, (4, 33))
    np.savez(folder / "ids.npz", input_ids=ids)
    return folder / "super.pt"


@pytest.fixture(scope="module")
def subnet(supernet: Path) -> SubnetReport:
    data = supernet.with_name("ids.npz")
    return make_subnet(
        supernet, supernet.with_name("sub.pt"), budget="5.2bits", data=data, evaluations=(12, 6)
    )


def test_it_gives_what_the_supernet_gives(supernet: Path, subnet: SubnetReport) -> None:
    module = restore(torch.load(supernet, weights_only=True))
    assert len(list(set_bits(module, subnet.taken.bits))) == 7
    ids = torch.randint(256, (2, 20))
    assert subnet.out is not None
    source = load_source(subnet.out)
    with torch.no_grad():
        found, wanted = source.module(ids), module(ids)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_it_is_the_best_that_was_tried_within_the_budget(subnet: SubnetReport) -> None:
    """Bits with scales and offsets: 32 columns to a group are two more."""
    fitting = [each for each in subnet.tried if each.mean <= 5.2]
    assert subnet.taken.loss == min(each.loss for each in fitting)
    sizes = {(b,) * 7: b + 2 for b in (2, 3, 4)}
    uniform = {each.bits: each.mean for each in subnet.tried if each.bits in sizes}
    assert uniform == pytest.approx(sizes, rel=0.05)  # 48 columns are two groups of 24
    losses = [each.loss for each in subnet.pareto]
    assert losses == sorted(losses, reverse=True)
    assert json.loads(json.dumps(subnet.to_json()))["evaluated"] == len(subnet.tried)


def test_it_is_the_same_wherever_it_is_searched(
    supernet: Path, subnet: SubnetReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes too; and what an earlier run has kept is not evaluated again."""
    how: dict[str, Any] = {
        "budget": "5.2bits",
        "data": supernet.with_name("ids.npz"),
        "evaluations": (12, 6),
        "work": tmp_path,
    }
    found = search_subnet(supernet, where=Where(jobs=2), **how)

    assert found.tried == subnet.tried
    assert found.taken == subnet.taken
    assert len(list(tmp_path.iterdir())) == len(found.tried)
    monkeypatch.setattr("intaglio.exporter.subnet_search.evaluate", None)
    assert search_subnet(supernet, **how).tried == subnet.tried


def test_a_budget_of_time_is_held_by_what_is_measured(
    supernet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of uniform bits tell which to try; a step of the one that is taken is measured."""
    asked: list[dict[str, int]] = []
    slower = 1.0

    def measured(_: Path, bits: dict[str, int], __: Any) -> float:
        asked.append(bits)
        if set(bits) == {"*"}:
            return 10.0 * bits["*"]
        return slower * 10 * float(np.mean(list(bits.values())))

    monkeypatch.setattr("intaglio.exporter.subnet._ms", measured)
    how: dict[str, Any] = {"data": supernet.with_name("ids.npz"), "evaluations": (12, 6)}
    found = search_subnet(supernet, budget="27ms", **how)

    assert asked[:3] == [{"*": 2}, {"*": 3}, {"*": 4}]
    assert asked[3:] == [found.bits]
    assert found.taken.loss == min(e.loss for e in found.tried if (e.ms or 0) <= 27)
    assert found.ms is not None
    assert found.ms <= 27 < max(each.ms or 0 for each in found.pareto) + 10
    slower = 2.0
    with pytest.raises(OptionError, match=r"the 5 best were measured, and the nearest took"):
        search_subnet(supernet, budget="27ms", **how)
    with pytest.raises(OptionError, match=r"No subnet has 19ms: .* and takes 20ms"):
        search_subnet(supernet, budget="19ms", **how)


def test_it_is_exported_and_verified(supernet: Path, subnet: SubnetReport, tmp_path: Path) -> None:
    """Out of the supernet, at the bits of the search, which the recipe repeats."""
    report = export(supernet, tmp_path / "bundle", bits=subnet.bits, steps=16)
    assert report.parity is not None
    assert report.parity.passed
    assert Recipe.read(tmp_path / "bundle/recipe.toml").bits == subnet.bits


def test_a_budget_that_nothing_meets_is_told_the_nearest(supernet: Path, tmp_path: Path) -> None:
    data = supernet.with_name("ids.npz")
    for budget, words in (
        ("1.5bits", r"the smallest, of 2 bits in all layers, has 4\."),
        ("0.001MB", "No subnet has 0.001MB"),
        ("12 apples", "as 3.1bits, 1.5MB or 12ms"),
    ):
        with pytest.raises(OptionError, match=words):
            make_subnet(supernet, tmp_path / "out.pt", budget=budget, data=data)
    assert not list(tmp_path.iterdir())


def test_another_file_is_no_supernet(subnet: SubnetReport, tmp_path: Path) -> None:
    assert subnet.out is not None
    with pytest.raises(SourceError, match="no supernet"):
        make_subnet(subnet.out, tmp_path / "out.pt", budget="3bits", data=tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="is no supernet, of which a budget"):
        make_subnet(tmp_path, tmp_path / "out.pt", budget="3bits", data=tmp_path)
