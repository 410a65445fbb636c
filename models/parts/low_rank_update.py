"""Low-rank updates of weights, trained in their place and merged into them after.

W + (alpha / rank) B A with B = 0 at first (Hu et al. 2021, arXiv:2106.09685).
"""

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRankUpdate(nn.Module):
    """W -> W + scale * B A, of which A and B are parameters."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.A = nn.Parameter(torch.empty(rank, columns, dtype=weight.dtype))
        self.B = nn.Parameter(torch.zeros(rows, rank, dtype=weight.dtype))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight [rows, columns]."""
        return weight + self.scale * (self.B @ self.A)


def attach(module: nn.Module, names: Collection[str], rank: int, alpha: float) -> int:
    """Freeze `module` but for low-rank updates of its linear layers of these last names.

    Returns:
        How many numbers are trained.
    """
    module.requires_grad_(requires_grad=False)
    for layer in list(_layers(module, names)):
        update = LowRankUpdate(layer.weight, rank, alpha)
        parametrize.register_parametrization(layer, "weight", update)
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def merge(module: nn.Module) -> None:
    """Put the updated weights in the place of the weights and their updates."""
    for layer in module.modules():
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _layers(module: nn.Module, names: Collection[str]) -> Iterator[nn.Linear]:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in names:
            yield layer
