"""Inputs that come back with more entries are found, whatever they are called."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intaglio.exporter.sources.load import load_source

Joined = Callable[[Tensor, Tensor], Tensor]


class Attended(nn.Module):
    """Keys that are called like no state."""

    def __init__(self, join: Joined) -> None:
        super().__init__()
        self.q, self.join = nn.Linear(4, 4), join

    def forward(self, x: Tensor, keys: Tensor) -> Any:
        keys = self.join(keys, x)
        return (self.q(x) @ keys.mT).softmax(-1) @ keys, keys


def after(keys: Tensor, x: Tensor) -> Tensor:
    return torch.cat([keys, x], 1)


def before(keys: Tensor, x: Tensor) -> Tensor:
    return torch.cat([x, keys], 1)


@pytest.mark.parametrize(("join", "caches"), [(after, 1), (before, 0)])
def test_a_cache_that_a_caller_has_to_give_is_told(join: Joined, caches: int) -> None:
    """With the words that make it one; what begins with something else is none."""
    given = {"x": torch.randn(2, 1, 4), "keys": torch.randn(2, 3, 4)}
    notes = load_source(Attended(join), inputs=given).notes
    found = [note for note in notes if "('keys' as 'output_1')" in note]

    assert len(found) == caches
    assert all("say so (--state keys=output_1)" in note for note in found)
