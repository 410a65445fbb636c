"""Recurrences through operators of PyTorch that scan: `scan` and `associative_scan`."""

from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.scan import scan

from .mixer import WIDTH, Mixer


class _Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.write = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)


class _Scanned(_Gated):
    def forward(self, x: Tensor) -> Any:
        def step(h: Tensor, u: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            gate, write = u
            h = gate * h + (1 - gate) * write
            return h, h.clone()

        over = (self.gate(x).sigmoid().movedim(1, 0), self.write(x).movedim(1, 0))
        return scan(step, torch.zeros_like(x[:, 0]), over, dim=0)[1].movedim(0, 1)


class _Associated(_Gated):
    def forward(self, x: Tensor) -> Any:
        def join(one: Any, two: Any) -> Any:
            return one[0] * two[0], two[0] * one[1] + two[1]

        gate = self.gate(x).sigmoid()
        _, h = associative_scan(join, (gate, (1 - gate) * self.write(x)), 1, combine_mode="generic")
        return h


def gated_scan() -> nn.Module:
    """A gated recurrence through `scan`."""
    return _Scanned()


def gated_associative_scan() -> nn.Module:
    """A gated recurrence through `associative_scan`, as S5 and minGRU have it."""
    return _Associated()


MIXERS = (Mixer(make=gated_scan), Mixer(make=gated_associative_scan))
