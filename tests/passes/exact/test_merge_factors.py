"""Factors and adapters become one matrix, to rounding, where that is no slower."""

from typing import Any

import pytest
import torch
from mixers import Attention, D, Residual
from torch import Tensor, nn
from traced import Traced

from intaglio.errors import PassError
from intaglio.passes import pipeline
from intaglio.passes.exact.merge_factors import MergeFactors


class TwoFactors(nn.Module):
    """A product of two matrices, as low-rank layers are."""

    def __init__(self, rank: int, *, bias: bool = False) -> None:
        super().__init__()
        self.down = nn.Linear(D, rank, bias=bias)
        self.up = nn.Linear(rank, D)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(self.down(x))
        return y


class Lora(nn.Module):
    """W x + 2 B A x, as adapters are beside their base."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.base = nn.Linear(D, D, bias=bias)
        self.lora_A = nn.Linear(D, 4, bias=False)
        self.lora_B = nn.Linear(4, D, bias=False)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.lora_B(self.lora_A(self.drop(x))) * 2.0
        return y


def merged(
    module: nn.Module, traced: Traced, *, usual: int | None = None, **options: Any
) -> list[tuple[str, str, bool]]:
    torch.manual_seed(0)
    model, context = traced(Residual(module, nn.Tanh()))
    context.tokens = usual
    steps = [*pipeline.tidy(), MergeFactors(**options)]
    records = pipeline.run(model, steps, context, check=True)
    assert records[-1].error is None or records[-1].error < 1e-5
    found = records[-1].result.details["factors"]
    for each in found:
        assert each["merged"] == (each["one"] <= each["apart"])
    return [(each["path"], each["kind"], each["merged"]) for each in found]


@pytest.mark.parametrize("bias", [False, True])
def test_factors_of_high_rank_become_one(bias: bool, traced: Traced) -> None:
    """Rank 24 of 32 costs more apart: 24 * 64 > 32 * 32; a bias between goes behind."""
    found = merged(TwoFactors(24, bias=bias), traced)
    assert found == [("layers.0.up", "factors", True)]


def test_three_matrices_in_a_row_become_one(traced: Traced) -> None:
    """A bias that went behind the first two goes behind the third."""
    three = nn.Sequential(nn.Linear(D, 24), nn.Linear(24, 30), nn.Linear(30, D))
    found = merged(three, traced)
    assert found == [("layers.0.1", "factors", True), ("layers.0.2", "factors", True)]


def test_factors_of_low_rank_stay_apart(traced: Traced) -> None:
    assert merged(TwoFactors(4), traced, launch=0) == [("layers.0.up", "factors", False)]


@pytest.mark.parametrize(
    ("rank", "tokens", "options", "one"),
    [
        (4, 1, {}, True),  # another node takes longer than all entries
        (4, 1, {"launch": 0}, False),  # 256 entries of 1024
        (4, 256, {"launch": 0}, True),  # inputs and results count
        (4, 256, {"launch": 0, "intensity": 3}, False),  # operations count
    ],
)
def test_the_tokens_of_a_call_decide(
    rank: int, tokens: int, options: dict[str, Any], one: bool, traced: Traced
) -> None:
    """Those that are asked for, or else those of the usual shapes."""
    wanted = [("layers.0.up", "factors", one)]
    assert merged(TwoFactors(rank), traced, tokens=tokens, **options) == wanted
    assert merged(TwoFactors(rank), traced, usual=tokens, **options) == wanted


@pytest.mark.parametrize("bias", [False, True])
def test_adapters_are_added_to_their_base(bias: bool, traced: Traced) -> None:
    found = merged(Lora(bias=bias), traced)
    assert found == [("layers.0.base", "adapter", True)]


def test_values_and_outputs_of_attention_are_no_factors(traced: Traced) -> None:
    assert merged(Attention(), traced) == []


def test_options_without_sense_are_refused(traced: Traced) -> None:
    with pytest.raises(PassError, match="tokens and launch should be at least 0"):
        merged(TwoFactors(4), traced, tokens=-1)
