"""FuseRmsNorm: one node where it is that norm, nothing where it is another."""

from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.exact.fuse_rms_norm import FuseRmsNorm

Traced = Callable[[nn.Module], tuple[ir.Model, Context]]


class Normed(nn.Module):
    """An embedding and a norm written by hand."""

    def __init__(self, norm: Callable[[Tensor, Tensor], Tensor], size: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 8)
        self.weight = nn.Parameter(torch.rand(size))
        self.norm = norm

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.norm(self.embed(input_ids), self.weight)


def rms(x: Tensor, axis: int = -1, eps: float = 1e-6) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(axis, keepdim=True) + eps)


CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "x scale w": (lambda x, w: x * rms(x) * w, True),
    "w (scale x)": (lambda x, w: w * (rms(x) * x), True),
    "x squared by itself": (
        lambda x, w: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * w,
        True,
    ),
    "of another value": (lambda x, w: x * rms(x + 1) * w, False),
    "sum of squares": (
        lambda x, w: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6) * w,
        False,
    ),
    "cubes": (lambda x, w: x * torch.rsqrt(x.abs().pow(3).mean(-1, True) + 1e-6) * w, False),
    "over time": (lambda x, w: x * rms(x, axis=1) * w, False),
    "a weight per row": (lambda x, w: x * rms(x) * w[:, None].sum(), False),
}


@pytest.mark.parametrize("name", CASES)
def test_only_root_mean_square_norms_fuse(name: str, traced: Traced) -> None:
    """The check compares both graphs in ONNX Runtime."""
    norm, fuses = CASES[name]
    torch.manual_seed(0)
    model, context = traced(Normed(norm))
    tidy = pipeline.standard()[:4]
    records = pipeline.run(model, [*tidy, FuseRmsNorm()], context, check=True)
    assert records[-1].result.changed is fuses
    assert ("RMSNormalization" in {node.op_type for node in model.graph}) is fuses
    assert not FuseRmsNorm().run(model, context).changed
