"""Clamps whose bounds are an integer and a float."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from intaglio.exporter.tracing.clamp_bounds import CLAMP, settle_clamps


class Clamped(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.clamp(1, 2.5), x.clamp(min=-0.5, max=2), torch.clip(x, 1), x.clamp(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_bounds_are_of_one_kind_and_mean_the_same(dtype: torch.dtype) -> None:
    x = torch.arange(-4, 8).to(dtype)
    program = export(Clamped(), (x,))
    settle_clamps(program)
    clamps = [node for node in program.graph.nodes if node.target is CLAMP]
    assert len(clamps) >= 3
    for node in clamps:
        bounds = [x for x in (*node.args[1:], *node.kwargs.values()) if x is not None]
        assert len({type(bound) for bound in bounds}) == 1
    for found, wanted in zip(program.module()(x), Clamped()(x), strict=True):
        assert torch.equal(found, wanted)


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, x.shape[0] - 1)


def test_a_bound_that_follows_from_sizes_stays() -> None:
    program = export(Last(), (torch.arange(6),), dynamic_shapes=({0: Dim("n", min=2)},))
    settle_clamps(program)
    assert program.module()(torch.arange(9) * 2).tolist() == [0, 2, 4, 6, 8, 8, 8, 8, 8]
