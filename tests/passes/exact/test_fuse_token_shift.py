"""FuseTokenShift: a sequence beside itself one token ago is stepped, however it is written."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from traced import VOCABULARY, Traced

from intaglio.errors import PassError
from intaglio.passes import pipeline

WIDTH = 4
Shift = Callable[[Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, shift: Shift) -> None:
        super().__init__()
        self._shift = shift
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.mix = nn.Parameter(torch.rand(WIDTH))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        return torch.lerp(x, self._shift(x), self.mix)


def padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, -1))


def joined(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


def turned(x: Tensor) -> Tensor:
    """With channels before time."""
    return F.pad(x.mT, (1, -1)).mT


def cut(x: Tensor) -> Tensor:
    return F.pad(x[:, :-1], (0, 0, 1, 0))


def ahead(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, -1, 1))


@pytest.mark.parametrize("shift", [padded, joined, turned, cut])
def test_a_shifted_sequence_carries_its_last_token(traced: Traced, shift: Shift) -> None:
    """Every pass checked, splits of time among it."""
    torch.manual_seed(0)
    model, context = traced(Net(shift))

    pipeline.run(model, pipeline.standard(), context, check=True)

    [state] = context.states
    assert (state.layout, state.shape) == ("conv", ("batch", WIDTH, 1))


def test_a_shift_to_earlier_times_is_refused(traced: Traced) -> None:
    """It shows each token the next one."""
    model, context = traced(Net(ahead))

    with pytest.raises(PassError):
        pipeline.run(model, pipeline.standard(), context)
