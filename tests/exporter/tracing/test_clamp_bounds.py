"""Clamps whose bounds are an integer and a float."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import export

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
