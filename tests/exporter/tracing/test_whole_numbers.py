"""Sizes that `int` and `len` are called of stay free, and functions are what they were after it."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

import intaglio
from intaglio.exporter.tracing.whole_numbers import free_sizes
from intaglio.runtime.session import Session


def windows(x: Tensor, side: int) -> Tensor:
    """Windows [B * count, side, side, C] of pictures [B, H, W, C]."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // side, side, width // side, side, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, side, side, channels)


def joined(x: Tensor, side: int, height: int, width: int) -> Tensor:
    """Pictures of windows, as Swin's authors have it."""
    batch = int(x.shape[0] / (height * width / side / side))
    x = x.view(batch, height // side, width // side, side, side, -1)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, -1)


class Windows(nn.Module):
    """Pictures of 4 x 8 with the mean of each window taken off, and the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        parts = windows(image * self.scale, 4)
        parts = parts - parts.mean((1, 2), keepdim=True)
        kind = int if isinstance(image.ndim, int) else float  # no call: it stays as it is
        mean = image.sum(0) / (len(image) + kind())
        return {"joined": joined(parts, 4, 4, 8), "mean": mean}


def test_the_batch_stays_free(tmp_path: Path) -> None:
    """At other batches than the example's, odd ones too."""
    torch.manual_seed(0)
    given = {"image": torch.randn(4, 4, 8, 3)}
    report = intaglio.export(
        Windows(), tmp_path / "b", inputs=given, axes={"image": "batchx4x8x3"}, steps=8
    )
    assert report.parity is not None
    assert report.parity.passed


def test_functions_are_what_they_were_and_keep_what_is_no_call() -> None:
    module, code = Windows(), joined.__code__
    names = dict(joined.__globals__)
    with free_sizes(module):
        assert joined.__code__ is not code
        assert joined(windows(given := torch.randn(2, 8, 8, 3), 4), 4, 8, 8).equal(given)
        assert "int" in Windows.forward.__code__.co_names
    assert joined.__code__ is code
    assert joined.__globals__.keys() == names.keys()


def test_quotients_that_are_no_sizes_are_rounded_to_zero() -> None:
    """Of 7 the third is 2, whatever stands beside it."""

    class Third(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[: int(x.shape[0] / 3)], x[: int(x.shape[0] * 0.5)]  # type: ignore[return-value]

    with free_sizes(module := Third()):
        shapes = {"x": {0: Dim.DYNAMIC}}
        program = torch.export.export(
            module, (), {"x": torch.randn(9, 2)}, dynamic_shapes=shapes, strict=False
        )
    third, half = program.module()(x=torch.randn(7, 2))
    assert (len(third), len(half)) == (2, 3)


class Scaled(nn.Module):
    """Attention scaled by the number of keys, and as many sums as a vector of groups names."""

    def forward(self, x: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        scores = x @ x.mT * (math.log(len(x) + 1) / math.sqrt(len(x)))
        count = int(group.max()) + 1
        return scores.softmax(-1) @ x, torch.zeros(count, 4).index_add(0, group, x)


def test_roots_and_logarithms_of_sizes_and_sizes_that_are_computed_stay_free(
    tmp_path: Path,
) -> None:
    """No bound on the groups is made of the largest one in the example."""
    given = {"x": torch.randn(5, 4), "group": torch.tensor([0, 0, 1, 1, 1])}
    axes = {"x": "nodesx4", "group": "nodes"}
    intaglio.export(Scaled(), tmp_path / "b", inputs=given, axes=axes)
    session = Session.load(tmp_path / "b")
    for groups in ([0], [0, 3, 3, 1, 2, 0, 5]):
        x, group = torch.randn(len(groups), 4), torch.tensor(groups)
        got = session.step({"x": x.numpy(), "group": group.numpy()})
        for value, wanted in zip(got.values(), Scaled()(x, group), strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)
    assert math.sqrt is Scaled.forward.__globals__["math"].sqrt
