"""Rounding with errors passed on: exact facts of single layers."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from intaglio.passes.calibrated._affine import (
    Quantized,
    errors,
    grid,
    quantize,
    relative_error,
    search_grid,
)
from intaglio.passes.calibrated._columns import damped, descend, factor, round_columns
from intaglio.passes.calibrated.gptq import Gptq
from intaglio.passes.calibrated.low_bit_pass import LowBit
from intaglio.passes.calibrated.rtn import Rtn
from intaglio.passes.calibrating import Statistics
from intaglio.passes.lower._block_format import integer_offset

GROUPS = [-1, 16, 10]


@pytest.fixture(scope="module")
def layer() -> tuple[Tensor, Tensor]:
    """A weight [12, 40] and X^T X of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    x = torch.randn(300, 40, generator=generator, dtype=torch.float64) @ mix
    return torch.randn(12, 40, generator=generator, dtype=torch.float64), x.T @ x / 300


def row_errors(weight: Tensor, found: Quantized, hessian: Tensor) -> Tensor:
    return errors(found.dequantize() - weight, hessian)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_inputs_that_are_not_correlated_leave_nothing_to_pass_on(
    layer: tuple[Tensor, Tensor], bits: int, group: int
) -> None:
    """With a diagonal X^T X, GPTQ is rounding to nearest."""
    weight, _ = layer
    hessian = torch.diag(torch.arange(1.0, 41.0, dtype=torch.float64))
    on = grid(weight, bits, group)
    found = round_columns(weight, *on, bits, group, factor(hessian))

    assert torch.equal(found.codes, quantize(weight, *on, bits, group).codes)


def test_columns_are_rounded_as_the_paper_does_one_by_one(layer: tuple[Tensor, Tensor]) -> None:
    """Against the plain loop: round, and let the inverse of what is left take up the error."""
    weight, hessian = layer
    hessian = damped(hessian, 0.01)
    scale, offset = grid(weight, 2, -1)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True).tolist()
    left, wanted = weight.clone(), torch.zeros_like(weight)
    for place, i in enumerate(order):
        open_ = order[place:]
        inverse = torch.linalg.inv(hessian[open_][:, open_])
        wanted[:, i] = ((left[:, i] - offset[:, 0]) / scale[:, 0]).round().clamp(-2, 1)
        wrong = left[:, i] - (scale[:, 0] * wanted[:, i] + offset[:, 0])
        left[:, open_] -= torch.outer(wrong / inverse[0, 0], inverse[0])
    found = round_columns(weight, scale, offset, 2, -1, factor(hessian))

    assert torch.equal(found.codes.double(), wanted)


@pytest.mark.parametrize("group", GROUPS)
def test_each_code_is_the_best_while_the_others_stay(
    layer: tuple[Tensor, Tensor], group: int
) -> None:
    """The descent ends where no single code lowers a row's error, and never raises one."""
    weight, hessian = layer
    found = quantize(weight, *grid(weight, 2, group), 2, group)
    for _ in range(30):
        settled = descend(weight, found, hessian)
        assert (
            row_errors(weight, settled, hessian) <= row_errors(weight, found, hessian) + 1e-9
        ).all()
        if torch.equal(settled.codes, found.codes):
            break
        found = settled
    least = row_errors(weight, found, hessian)

    for column in range(0, 40, 7):
        for code in (-2, -1, 0, 1):
            other = found.codes.clone()
            other[:, column] = code
            moved = Quantized(
                codes=other, scale=found.scale, offset=found.offset, bits=2, group=found.group
            )
            assert (row_errors(weight, moved, hessian) >= least - 1e-9).all()


@pytest.mark.parametrize("group", GROUPS)
def test_clipping_is_kept_by_the_rows_that_gain(layer: tuple[Tensor, Tensor], group: int) -> None:
    weight, hessian = layer
    statistics = Statistics(fitted=hessian, held_out=None, tokens=300)
    on = damped(hessian, 0.01)
    plain, clipped = (
        row_errors(weight, Gptq(clip=clip).solve(weight, statistics, 2, group), on)
        for clip in (False, True)
    )

    assert (clipped <= plain + 1e-9).all()
    assert (clipped < plain - 1e-9).any()


def test_the_searched_range_errs_no_more_than_the_whole(layer: tuple[Tensor, Tensor]) -> None:
    weight, hessian = layer
    whole = quantize(weight, *grid(weight, 2, 16), 2, 16)
    searched = quantize(weight, *search_grid(weight, hessian, *grid(weight, 2, 16), 2, 16), 2, 16)

    assert (
        row_errors(weight, searched, hessian) <= row_errors(weight, whole, hessian) * 1.0001
    ).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("step", [Rtn, Gptq, partial(Gptq, clip=True)])
def test_offsets_may_be_integer_zero_points(
    step: Callable[..., LowBit], bits: int, layer: tuple[Tensor, Tensor]
) -> None:
    """Scale times an integer within the codes, to the bit of single precision; zero stays zero."""
    weight, hessian = layer
    weight = weight.clone()
    weight[:, 3] = 0
    statistics = Statistics(fitted=hessian, held_out=None, tokens=300)
    found = step(zero_points=True).solve(weight, statistics, bits, 16).as_stored()
    points = integer_offset(found.scale.float().numpy(), found.offset.float().numpy(), bits)

    assert points is not None
    assert (points != 0).any()
    if step is Rtn:  # at most half a step, and half of one that the range was moved by
        assert ((found.dequantize() - weight).abs() <= found.by_input(found.scale) * 1.001).all()
        assert found.dequantize()[:, 3].abs().max() < 1e-6


def test_the_relative_error_is_that_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    wrong = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    wanted = float((x @ wrong.T).square().sum() / (x @ weight.T).square().sum())

    assert relative_error(wrong, weight, x.T @ x) == pytest.approx(wanted)


def test_inputs_that_never_occur_are_no_obstacle(layer: tuple[Tensor, Tensor]) -> None:
    """Columns of X that are zero, and fewer tokens than inputs, leave X^T X singular."""
    weight, _ = layer
    x = torch.zeros(5, 40, dtype=torch.float64)
    x[:, :20] = torch.randn(5, 20, dtype=torch.float64)
    for hessian in (x.T @ x, torch.zeros(40, 40, dtype=torch.float64)):
        statistics = Statistics(fitted=hessian, held_out=None, tokens=5)
        found = Gptq(clip=True).solve(weight, statistics, 2, 16)
        assert found.dequantize().isfinite().all()
