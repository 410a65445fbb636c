"""No module is built that the files could not fill."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.huggingface import module_size
from intaglio.exporter.sources.huggingface.module_size import check_counts, within

HELD = {"a": torch.zeros(10, 10)}


def test_what_fits_is_built() -> None:
    """Tied tables too, and more of them where an element holds several weights."""
    with within(HELD), torch.device("meta"):
        nn.Linear(5000, 5000)
    packed = {"a": torch.zeros(2_000_000, dtype=torch.int32)}
    with within(packed, packed=True), torch.device("meta"):
        nn.Linear(9000, 9000)


MAKES: dict[str, Callable[[], nn.Module]] = {
    "parameters": lambda: nn.Linear(2, 2),
    "elements of parameters": lambda: nn.Linear(5000, 5000),
    "elements of buffers": lambda: nn.BatchNorm1d(300, affine=False),
}


@pytest.mark.parametrize("what", MAKES)
def test_what_is_larger_is_refused_while_it_is_built(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before what comes after is asked for; and nothing is counted any more afterwards."""
    monkeypatch.setattr(module_size, "BUFFERS", 1000)
    made: list[nn.Module] = []

    def build() -> None:
        with within(HELD), torch.device("meta"):
            made.extend(MAKES[what]() for _ in range(1100))

    with pytest.raises(SourceError, match=f"far more {what} than the 1 tensors"):
        build()
    with torch.device("meta"):
        nn.Linear(50_000, 50_000)


@pytest.mark.parametrize("name", ["num_labels", "num_hidden_layers", "n_layer", "decoder_layers"])
def test_lists_without_end_are_not_made_of_a_config(name: str) -> None:
    """The library makes one of labels or kinds of layers before there is a module."""
    for config in ({name: 10**6}, {"text_config": {name: 10**6}}, {"parts": [{name: 10**12}]}):
        with pytest.raises(SourceError, match=f"says {name} = 10+, more than any"):
            check_counts(config, Path("config.json"))
    check_counts({name: 200, "vocab_size": 10**6, "layer_norm_eps": 1e-6}, Path("config.json"))
