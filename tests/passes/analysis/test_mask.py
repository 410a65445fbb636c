"""Masks are recognised by what they allow, never by how they are written."""

from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from intaglio.passes.analysis.mask import Causal, recognise
from intaglio.passes.base import Context

Mask = Callable[[Tensor, Tensor], Tensor]


class Masked(nn.Module):
    """Attention under a mask given by row and column indices."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 8)
        self.mask = mask

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)[:, None]
        i = torch.arange(input_ids.shape[1])
        mask = self.mask(i[:, None], i[None, :])
        return nn.functional.scaled_dot_product_attention(x, x, x, mask)[:, 0]


def low(allowed: Tensor) -> Tensor:
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)


CASES: dict[str, tuple[Mask, Causal | None]] = {
    "causal": (lambda i, j: j <= i, Causal()),
    "causal as float": (lambda i, j: low(j <= i), Causal()),
    "causal as minus infinity": (
        lambda i, j: torch.zeros(i.shape[0], j.shape[1]).masked_fill(j > i, float("-inf")),
        Causal(),
    ),
    "window of one": (lambda i, j: i == j, Causal(1)),
    "window of 6": (lambda i, j: (j <= i) & (j > i - 6), Causal(6)),
    "window of 20, written with 19": (lambda i, j: (j <= i) & (i - j <= 19), Causal(20)),
    "window of 20 in floats": (lambda i, j: (j <= i) & ((i - j).float() < 20.0), Causal(20)),
    "bidirectional": (lambda i, j: (i - j).abs() >= 0, None),
    "bidirectional window": (lambda i, j: (i - j).abs() < 3, None),
    "later tokens only": (lambda i, j: j >= i, None),
    "strictly causal": (lambda i, j: (j < i) | (i == 0), None),
    "blocks of 4": (lambda i, j: (j <= i) & (i // 4 == j // 4), None),
    "first token always": (lambda i, j: ((j <= i) & (j > i - 3)) | (j == 0), None),
    "ALiBi": (lambda i, j: torch.where(j <= i, 0.5 * (j - i), float("-inf")), None),
    "a window too wide to try": (lambda i, j: (j <= i) & (j > i - 100_000), None),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_mask_allows(
    name: str, traced: Callable[[nn.Module], tuple[ir.Model, Context]]
) -> None:
    """Sixty nodes or three, booleans or floats: only the table of who sees whom counts."""
    mask, expected = CASES[name]
    model, _ = traced(Masked(mask))
    attention = next(node for node in model.graph if node.op_type == "Attention")
    value = attention.inputs[3]
    assert value is not None
    assert recognise(model, value) == expected
