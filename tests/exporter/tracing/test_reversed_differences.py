"""A number less a tensor, where one is whole and the other is not."""

import torch
from torch import Tensor, nn
from torch.export import export

from intaglio.exporter.tracing.reversed_differences import REVERSED, settle_reversed_differences


class Reversed(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return 3.0 - x, torch.rsub(x, 2.5, alpha=2), 3 - x


def test_tensor_is_of_the_dtype_of_the_difference() -> None:
    x = torch.arange(-4, 8)
    program = export(Reversed(), (x,))
    settle_reversed_differences(program)
    differences = [node for node in program.graph.nodes if node.target is REVERSED]
    assert len(differences) == 3
    for node in differences:
        assert node.args[0].meta["val"].dtype == node.meta["val"].dtype
    for found, wanted in zip(program.module()(x), Reversed()(x), strict=True):
        assert torch.equal(found, wanted)
