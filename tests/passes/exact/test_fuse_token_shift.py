"""FuseTokenShift: a sequence beside itself one token ago is stepped, however it is written."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from traced import VOCABULARY, Traced

from intaglio.errors import PassError
from intaglio.exporter.export import export
from intaglio.passes import pipeline
from intaglio.runtime import Session

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


def windowed(x: Tensor) -> Tensor:
    """One of several pieces of a padded sequence, each as long as it."""
    return F.pad(x, (0, 0, 3, 0))[:, 2 : 2 + x.shape[1]]


def ahead(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, -1, 1))


@pytest.mark.parametrize("shift", [padded, joined, turned, cut, windowed])
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


def written(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 2:] = x[:, :-2]
    return y


def moved_channels(x: Tensor) -> Tensor:
    """Of two channels, with the others as they are (temporal shift modules)."""
    y = torch.zeros_like(x)
    y[:, 2:, :2] = x[:, :-2, :2]
    y[:, :, 2:] = x[:, :, 2:]
    return y


def repeated(x: Tensor) -> Tensor:
    """The first token stands in front of itself."""
    return F.pad(x.mT, (2, 0), mode="replicate").mT[:, : x.shape[1]]


def behind_a_layer(x: Tensor) -> Tensor:
    """What a layer made of padding stands in front: no zeros any more."""
    return (F.pad(x, (0, 0, 3, 0)) * 2 + 1).tanh()[:, 1 : 1 + x.shape[1]]


class Lagged(nn.Module):
    def __init__(self, shift: Shift) -> None:
        super().__init__()
        self._shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return self._shift(x)


@pytest.mark.parametrize(
    ("shift", "kind"),
    [
        *itertools.product([windowed, joined], [torch.float32, torch.int64, torch.bool]),
        *itertools.product([written, moved_channels], [torch.float32, torch.int64]),
        *itertools.product([repeated, behind_a_layer], [torch.float32]),
    ],
)
def test_what_came_before_is_what_it_was(shift: Shift, kind: torch.dtype, tmp_path: Path) -> None:
    """Of every dtype, token by token, from the first one on."""
    torch.manual_seed(0)
    x = (torch.randn(3, 9, WIDTH) * 5).to(kind)
    module = Lagged(shift)

    export(module, tmp_path / "bundle", inputs={"x": x[:2, :7]}, steps=24, verify=False)

    session = Session.load(tmp_path / "bundle")
    found = [session.step({"x": x[:, t : t + 1].numpy()})["output"] for t in range(9)]
    wanted = module(x).numpy()
    np.testing.assert_allclose(np.concatenate(found, 1), wanted, rtol=1e-6)
    whole = Session.load(tmp_path / "bundle").step({"x": x.numpy()})["output"]
    np.testing.assert_allclose(whole, wanted, rtol=1e-6)
