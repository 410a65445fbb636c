"""The subnet of a budget: its file gives what the supernet gives at these bits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.subnet import SubnetReport, make_subnet
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


def test_it_is_exported_and_verified(subnet: SubnetReport, tmp_path: Path) -> None:
    report = export(subnet.out, tmp_path / "bundle", steps=16)
    assert report.parity is not None
    assert report.parity.passed


def test_a_budget_that_nothing_meets_is_told_the_nearest(supernet: Path, tmp_path: Path) -> None:
    data = supernet.with_name("ids.npz")
    for budget, words in (
        ("1.5bits", r"the smallest, of 2 bits in all layers, has 4\."),
        ("0.001MB", "No subnet has 0.001MB"),
        ("12 apples", "as 3.1bits or 1.5MB"),
    ):
        with pytest.raises(OptionError, match=words):
            make_subnet(supernet, tmp_path / "out.pt", budget=budget, data=data)
    assert not list(tmp_path.iterdir())


def test_another_file_is_no_supernet(subnet: SubnetReport, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no supernet"):
        make_subnet(subnet.out, tmp_path / "out.pt", budget="3bits", data=tmp_path)
