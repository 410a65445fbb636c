"""A supernet is a source once its layers have bits."""

from pathlib import Path

import pytest
import torch

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.sources.load import load_source
from intaglio.models import llama
from intaglio.models.supernet import Supernet, restore, save, set_bits
from intaglio.models.tuning import of_text

CONFIG = llama.Config(vocab_size=256, hidden_size=16, intermediate_size=24, num_layers=1)


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module = llama.build(CONFIG)
    Supernet(group=8, rank=2, steps=2, period=2).tune(module, of_text(bytes(range(256)), 2, 8))
    path = tmp_path_factory.mktemp("supernets") / "super.pt"
    save(path, "llama", CONFIG, module)
    return path


def test_the_last_glob_that_fits_decides(supernet: Path) -> None:
    source = load_source(supernet, bits={"*": 2, "*.mlp.*": 4, "*down_proj": 3})
    module = restore(torch.load(supernet, weights_only=True))
    layers = list(set_bits(module, [2, 2, 2, 2, 4, 4, 3]))
    ids = torch.arange(20)[None]

    assert [name.rpartition(".")[2] for name, _ in layers[-3:]] == [
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    with torch.no_grad():
        found, wanted = source.module(ids), module(ids)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_bits_that_are_not_said_or_not_there_are_refused(supernet: Path, tmp_path: Path) -> None:
    for bits, words in (
        ({}, r"is a supernet, and .*q_proj.* and 4 more may have 2, 3, 4 bits. Say how many"),
        ({"*mlp*": 3}, r"v_proj and 1 more may have"),
        ({"*": 2, "head": 3}, r"--bits head: no layer is called so"),
        ({"*": 5}, r"q_proj is there at 2, 3, 4 bits, not at 5"),
    ):
        with pytest.raises(OptionError, match=words):
            load_source(supernet, bits=bits)
    plain = tmp_path / "plain.pt"
    torch.save({"weight": torch.ones(2, 2)}, plain)
    with pytest.raises(OptionError, match="--bits says nothing about"):
        load_source(plain, model="llama", bits={"*": 3})
    held = torch.load(supernet, weights_only=True)
    torch.save({**held, "layers": {"nothing": [8, 2]}}, plain)
    with pytest.raises(SourceError, match=r"plain.pt: The supernet has a layer 'nothing'"):
        load_source(plain, bits={"*": 3})
