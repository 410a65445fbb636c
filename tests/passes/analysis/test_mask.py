"""What masks allow is proven over every pair of positions, never tried at a few."""

from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import PassError
from intaglio.passes import pipeline
from intaglio.passes.analysis.mask import Causal, Computed, constants_of, judge
from intaglio.passes.analysis.meetings import MASK, Meeting, meetings
from intaglio.passes.analysis.pair_reader import PairReader
from intaglio.passes.analysis.pairs import Axes
from intaglio.passes.base import Context

Mask = Callable[[Tensor, Tensor], Tensor]
Traced = Callable[[nn.Module], tuple[ir.Model, Context]]

TABLE = torch.ones(700, 700, dtype=torch.bool).tril()
BAND = TABLE & ~TABLE.tril(-600)
HOLE = TABLE.clone()
HOLE[300, 17] = False


class Masked(nn.Module):
    """Attention under masks given by row and column indices, a layer each."""

    def __init__(self, *masks: Mask) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 8)
        self.masks = masks

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)[:, None]
        i = torch.arange(input_ids.shape[1])
        for mask in self.masks:
            x = nn.functional.scaled_dot_product_attention(x, x, x, mask(i[:, None], i[None]))
        result: Tensor = x[:, 0]
        return result


def low(allowed: Tensor, fill: float = float("-inf")) -> Tensor:
    return torch.where(allowed, 0.0, fill)


UNDERSTOOD: dict[str, tuple[Mask, Causal | Computed]] = {
    "causal": (lambda i, j: j <= i, Causal()),
    "lowest": (lambda i, j: low(j <= i, torch.finfo(torch.float32).min), Causal()),
    "-10000": (lambda i, j: low(j <= i, -1e4), Causal()),
    "triangle": (lambda i, _: torch.full((i.shape[0],) * 2, float("-inf")).triu(1), Causal()),
    "window of one": (lambda i, j: i == j, Computed()),
    "window of 20, written with 19": (lambda i, j: (j <= i) & (i - j <= 19), Causal(20)),
    "window of 20 in floats": (lambda i, j: (j <= i) & ((i - j).float() < 19.5), Causal(20)),
    "window of 1.2 s": (lambda i, j: (j <= i) & ((i - j) * 0.002 <= 1.2), Causal(601)),
    "the widest window": (lambda i, j: (j <= i) & (j > i - 100_000), Causal(100_000)),
    "half of a window is -10000": (lambda i, j: low(j <= i) + low(i - j < 9, -1e4), Causal(9)),
    "table": (lambda i, _: BAND[: i.shape[0], : i.shape[0]], Causal(600, 700)),
    "table with a hole": (lambda i, _: HOLE[: i.shape[0], : i.shape[0]], Computed(700)),
    "blocks of 4": (lambda i, j: (j <= i) & (i // 4 == j // 4), Computed()),
    "first tokens always": (lambda i, j: (j <= i) & ((j > i - 600) | (j < 4)), Computed()),
    "one pair far away": (lambda i, j: (j <= i) & ((i - j != 9000) | (j != 3)), Computed()),
    "ALiBi": (lambda i, j: torch.where(j <= i, 0.5 * (j - i), float("-inf")), Computed()),
    "a choice of masks": (lambda i, j: torch.where(j % 2 == 0, j <= i, j < i), Computed()),
    "a window of bytes, which wrap": (
        lambda i, j: (j <= i) & ((i.to(torch.uint8) - j.to(torch.uint8)) < 100),
        Computed(),
    ),
    "blocks of 4, others -10000": (
        lambda i, j: low((j <= i) & (i // 4 == j // 4), -1e4),
        Computed(),
    ),
    "every third token, others -10000": (
        lambda i, j: low((j <= i) & ((i - j) % 3 == 0), -1e4),
        Computed(),
    ),
    "a small bias": (lambda i, j: low(j <= i) + low(i - j < 900, -5.0), Computed()),
}

LEAKING: dict[str, Mask] = {
    "everything": lambda i, j: (i - j).abs() >= 0,
    "both sides": lambda i, j: (i - j).abs() < 3,
    "later tokens only": lambda i, j: j >= i,
    "one ahead": lambda i, j: j <= i + 1,
    "one ahead beyond 5000": lambda i, j: (j <= i) | ((i > 5000) & (j == i + 1)),
    "prefix": lambda i, j: (j <= i) | (j < 5),
    "blocks": lambda i, j: i // 4 >= j // 4,
    "places as bytes, which wrap": lambda i, j: j.to(torch.uint8) <= i.to(torch.uint8),
    "places in 16 bits, times 100": lambda i, j: j.short() * 100 <= i.short() * 100,
    "later tokens weigh less": lambda i, j: low(j <= i, -5.0),
    "blocks before, others -10000": lambda i, j: low((j <= i) & (i // 4 != j // 4), -1e4),
    "other blocks for keys, -10000": lambda i, j: low((j <= i) & (i // 4 == (j + 1) // 4), -1e4),
    "every third but itself, -10000": lambda i, j: low((j <= i) & ((i - j) % 3 == 1), -1e4),
    "rows without a key, -10000": lambda i, j: low(j < i, -1e4),
}


def met(model: ir.Model) -> list[Meeting]:
    pipeline.run(model, pipeline.whole(), Context())
    found = meetings(model.graph).found
    return [found[node] for node in model.graph if node in found]


def test_what_masks_allow_is_proven(traced: Traced) -> None:
    """Booleans or floats, comparisons or tables: a layer of one module for each."""
    model, _ = traced(Masked(*(mask for mask, _ in UNDERSTOOD.values())))
    found = [each.mask for each in met(model)]
    assert dict(zip(UNDERSTOOD, found, strict=True)) == {n: x for n, (_, x) in UNDERSTOOD.items()}


def test_masks_that_may_show_a_later_token_are_none(traced: Traced) -> None:
    """However far away the pair is, and however small the weight."""
    model, _ = traced(Masked(*LEAKING.values()))
    pipeline.run(model, pipeline.whole(), Context())
    reader = PairReader(model.graph)
    masks = [node.inputs[MASK] for node in model.graph if node.op_type == "Attention"]
    found = [judge(reader.read(mask, Axes(0, 1))) for mask in masks if mask is not None]
    assert dict(zip(LEAKING, found, strict=True)) == dict.fromkeys(LEAKING)
    with pytest.raises(PassError, match="may allow a token to attend to later ones"):
        meetings(model.graph)


def test_numbers_that_a_mask_is_computed_with_are_told(traced: Traced) -> None:
    """Who tries lengths learns which to look past: constants, and rows of tables."""
    first, _ = UNDERSTOOD["first tokens always"]
    hole, _ = UNDERSTOOD["table with a hole"]
    model, _ = traced(Masked(first, hole))
    one, other = ({n for term in each.terms for n in constants_of(term)} for each in met(model))
    assert {600, 4} <= one
    assert 700 in other
