"""Inputs that come back with more entries are told to be carried by nobody."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import PassError
from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source

GIVEN = {"x": torch.randn(2, 1, 4), "past": torch.randn(2, 3, 4)}
Joined = Callable[[Tensor, Tensor], Tensor]


class Attended(nn.Module):
    def __init__(self, join: Joined) -> None:
        super().__init__()
        self.q, self.join = nn.Linear(4, 4), join

    def forward(self, x: Tensor, past: Tensor) -> Any:
        keys = self.join(past, x)
        longest = torch.ones(x.shape[1], keys.shape[1], dtype=torch.bool)
        seen = longest.tril(keys.shape[1] - x.shape[1])
        scores = (self.q(x) @ keys.mT).masked_fill(~seen, -1e9)
        return scores.softmax(-1) @ keys, keys


def after(past: Tensor, x: Tensor) -> Tensor:
    return torch.cat([past, x], 1)


def before(past: Tensor, x: Tensor) -> Tensor:
    return torch.cat([x, past], 1)


@pytest.mark.parametrize(("join", "caches"), [(after, 1), (before, 0)])
def test_a_cache_that_a_caller_has_to_give_is_told(join: Joined, caches: int) -> None:
    """With what makes an engine that carries one; what begins with something else is none."""
    notes = load_source(Attended(join), inputs=GIVEN).notes
    found = [note for note in notes if "('past' as 'output_1')" in note]

    assert len(found) == caches
    assert all("that takes x of all tokens, without past" in note for note in found)


def test_a_refusal_of_the_model_as_steps_tells_it_too(tmp_path: Path) -> None:
    inputs = {"x": torch.randn(2, 4, 4), "past": torch.randn(2, 5, 4)}

    with pytest.raises(PassError, match=r"Nothing is carried from call to call.*--whole"):
        export(Attended(after), tmp_path / "bundle", inputs=inputs)
