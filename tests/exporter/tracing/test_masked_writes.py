"""Writes of a number where a mask is true."""

import torch
from torch import Tensor, nn
from torch.export import Dim, export

from intaglio.exporter.tracing.masked_writes import FILLS, settle_masked_writes


class Filled(nn.Module):
    """Writes that are masks, and writes to rows, of rows, and of many numbers, which are not."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b, c = x.clone(), x.clone(), x.clone()
        a[a < 0] = 0.0
        b[b[:, 0] > 0] = 2.0
        c[torch.arange(2)] = 1.0
        return a, b, c, x.index_put((x > 1,), torch.tensor(7.0))


def test_a_number_under_a_mask_is_filled_in() -> None:
    x = torch.randn(4, 3)
    program = export(Filled(), (x,), dynamic_shapes={"x": {0: Dim.DYNAMIC}})
    settle_masked_writes(program)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert sum(target in FILLS.values() for target in targets) == 2
    assert sum(target in FILLS for target in targets) == 2
    x = torch.randn(6, 3)
    for found, wanted in zip(program.module()(x), Filled()(x), strict=True):
        assert torch.equal(found, wanted)
