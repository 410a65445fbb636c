"""What takes sizes is captured with all of them free, and gives at each what PyTorch gives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.exporter.tracing.spellings import Spellings

Call = Callable[[Tensor], Tensor | tuple[Tensor, ...]]


def places(x: Tensor) -> Tensor:
    return x.flatten(1).argmax(1)


CALLS: dict[str, Call] = {
    "one_hot": lambda x: F.one_hot(places(x), x.shape[1] * x.shape[2]),
    "fill_diagonal_": lambda x: torch.zeros(x.shape[1], x.shape[2]).fill_diagonal_(3.0) + x,
    "repeat_interleave": lambda x: torch.arange(x.shape[1]).repeat_interleave(x.shape[2]),
    "repeat_interleave of an axis": lambda x: x.repeat_interleave(x.shape[1], dim=-1),
    "isin": lambda x: torch.isin(torch.arange(40), places(x) + torch.arange(x.shape[1])[:, None]),
    "bucketize": lambda x: torch.bucketize(x, torch.linspace(-1, 1, x.shape[2])),
    "roll": lambda x: torch.roll(x, (x.shape[1] // 2, -x.shape[2] // 2 - x.shape[2]), (1, 2)),
    "unravel_index": lambda x: torch.unravel_index(places(x), (x.shape[1], x.shape[2])),
    "tensor_split": lambda x: torch.tensor_split(x, 3, 2),
    "linspace": lambda x: (
        torch.linspace(0.5, x.shape[1] - 0.5, x.shape[1])
        + torch.linspace(0, 1, x.shape[2])[:, None]
    ),
    "linspace to a size": lambda x: torch.linspace(0, x.shape[2], 5),
    "affine_grid": lambda x: F.affine_grid(
        x[:, :2, :3], [2, 1, x.shape[1], x.shape[2]], align_corners=False
    ),
    "affine_grid of corners": lambda x: F.affine_grid(
        x[:, :2, :3], [2, 1, x.shape[2], x.shape[1]], True
    ),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x, 3),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x[:, None], (2, 5)),
    "adaptive_avg_pool2d of one axis": lambda x: F.adaptive_avg_pool2d(x, (None, 1)),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x[:, None], (3, 2)),
    "bincount": lambda x: torch.bincount(places(x) % x.shape[2], minlength=x.shape[2]),
    "mean of a place": lambda x: x.clone().scatter_reduce_(
        1,
        places(x)[:, None, None].expand(-1, 1, x.shape[2]) % x.shape[1],
        x[:, :1] + 9,
        "mean",
        include_self=False,
    ),
}


class Sized(nn.Module):
    """A call of pictures whose height and width are free."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.call(x)


@pytest.mark.parametrize("name", CALLS)
def test_sizes_stay_free(name: str) -> None:
    module, auto = Sized(CALLS[name]), torch.export.Dim.DYNAMIC
    torch.manual_seed(0)
    with Spellings():
        given = (torch.randn(2, 6, 8),)
        program = torch.export.export(module, given, dynamic_shapes={"x": {1: auto, 2: auto}})
    for height, width in ((6, 8), (7, 5), (12, 9), (3, 4)):
        x = torch.randn(2, height, width)
        torch.testing.assert_close(program.module(check_guards=False)(x), module(x))
