"""Numbers at which a module may begin to do something else are found wherever it keeps them."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.exporter.tracing.loops.told import lengths_beyond, told_numbers

IN_THE_FILE = 1301


def _helper(x: Tensor, t: int, step: int = 1401) -> Tensor:
    return x[:, max(0, t - IN_THE_FILE) : t + step]


def _inner() -> int:
    return 1501


def _outer() -> int:
    return _inner()


@dataclass
class Settings:
    window: int = 1601
    deeper: dict[str, Any] = field(default_factory=lambda: {"layers": [{"span": 1701}]})


class Own(nn.Module):
    of_the_class = 1801

    def __init__(self, kept: int, names: Any, closed: int, width: int) -> None:
        super().__init__()
        self.kept = kept
        self.settings = Settings()
        self.names = names
        self.function = lambda t: t - closed
        self.layer = nn.Linear(width, 1)

    @property
    def given(self) -> int:
        return 2101

    def forward(self, x: Tensor) -> Tensor:
        for t in range(1201):
            x = _helper(x, t)[:, -1251:] + _outer()
        return torch.relu(x)


def test_numbers_are_found_wherever_they_are_kept() -> None:
    names = SimpleNamespace(other=1199)  # of another package, whose fields may be many
    module = Own(kept=1101, names=names, closed=1901, width=2001)

    found = {n for n in told_numbers(module) if n > 1000}

    assert found == {1101, 1201, 1251, 1301, 1401, 1501, 1601, 1701, 1801, 1901, 2101}


def test_modules_of_pytorch_tell_nothing() -> None:
    assert told_numbers(nn.Sequential(nn.Linear(12, 700), nn.LSTM(700, 12))) == ()


def test_runs_go_past_each_and_far_past_the_largest() -> None:
    assert list(lengths_beyond(())) == []
    assert list(lengths_beyond((8, 600))) == [9, 601, 902]
    assert max(lengths_beyond((5000,))) == 6026
