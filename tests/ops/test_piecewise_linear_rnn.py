"""PiecewiseLinearRNN: its equations, both loops and the body in ONNX Runtime say the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from intaglio.errors import InputError
from intaglio.ops import PIECEWISE_LINEAR_RNN, diagonal_ssm, piecewise_linear_rnn
from intaglio.ops.op import Sample

OP = PIECEWISE_LINEAR_RNN
M = 5


def draw(
    time: int = 9,
    num_relu: int = 2,
    *,
    forced: int = 3,
    mask: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Sample:
    """Random arguments of a network whose states stay bounded."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    state = torch.float64 if dtype == torch.float64 else torch.float32
    sample: Sample = {
        "drive": normal(2, time, M).to(dtype),
        "A": (0.5 * normal(M).tanh()).to(state),
        "W": (0.2 * normal(M, M)).to(state),
        "h": normal(M).to(state),
        "past_state": normal(2, M).to(state),
        "num_relu": num_relu,
    }
    if forced:
        sample["force"] = normal(2, time, forced).to(dtype)
        if mask:
            sample["force_mask"] = normal(2, time) > 0
    return sample


@pytest.mark.parametrize("num_relu", [0, 2, M])
@pytest.mark.parametrize(("forced", "mask"), [(0, False), (3, False), (3, True), (M, True)])
def test_the_fast_form_equals_the_equations(
    num_relu: int, forced: int, mask: bool, close: Callable[..., None]
) -> None:
    """From no unit rectified to all, from none forced to all, and without a token."""
    for time in (0, 1, 7):
        sample = draw(time, num_relu, forced=forced, mask=mask)
        for got, wanted in zip(piecewise_linear_rnn(**sample), OP.reference(**sample), strict=True):
            close(got, wanted, OP.tolerance[torch.float64])


def test_one_step_by_hand() -> None:
    """Z = (3, -1, -2): the first unit forced to 4, the last rectified, W taking unit 1 and 3."""
    z, _ = piecewise_linear_rnn(
        torch.tensor([[[0.5, 0.0, 0.0]]]),
        torch.tensor([0.5, 0.5, 0.5]),
        torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 9.0]]),
        torch.tensor([0.0, 0.0, 1.0]),
        torch.tensor([[[4.0]]]),
        torch.tensor([[True]]),
        torch.tensor([[3.0, -1.0, -2.0]]),
        num_relu=1,
    )
    # 0.5 * 4 - 1 + 0.5;  0.5 * -1 + 4;  0.5 * -2 + 9 * 0 + 1
    assert z.flatten().tolist() == [1.5, 3.5, 0.0]


def test_units_that_do_not_mix_are_a_diagonal_state_space_model(
    close: Callable[..., None],
) -> None:
    """Two operators of two definitions: W a diagonal, or a rate of decay for each unit."""
    sample = draw(num_relu=0, forced=0)
    kept = torch.rand(M, dtype=torch.float64).add(0.1)
    sample |= {"A": torch.zeros_like(kept), "W": kept.diag(), "h": torch.zeros_like(kept)}
    ones = torch.ones(M, 1, dtype=torch.float64)
    wanted, last = diagonal_ssm(
        sample["drive"], kept.log()[:, None], ones, ones,
        past_state=sample["past_state"][..., None], discretization="none", lti=True,
    )  # fmt: skip
    got, present = piecewise_linear_rnn(**sample)
    close(got, wanted, 1e-12)
    close(present, last[..., 0], 1e-12)


def test_the_body_computes_the_samples_in_onnx_runtime(
    own_engine_of: Callable[..., Any], close: Callable[..., None]
) -> None:
    """At the opset of the portable graph and at that of the lowered one."""
    for sample in OP.samples(torch.float32):
        exact = widened(sample)
        for opset in (24, 27):
            found = own_engine_of(OP, sample, opset)(sample)
            for got, wanted in zip(found, OP.reference(**exact), strict=True):
                close(got, wanted, OP.tolerance[torch.float32])


def widened(sample: Sample) -> Sample:
    """The sample in float64."""
    floats = {n: x for n, x in sample.items() if isinstance(x, Tensor) and x.is_floating_point()}
    return {**sample, **{name: x.double() for name, x in floats.items()}}


def test_any_cut_of_time_is_bit_identical_on_onnx_runtime(
    own_engine_of: Callable[..., Any], cut_into: Callable[..., list[list[int]]]
) -> None:
    """From a state that is not zero, forced now and then."""
    sample = draw(11, dtype=torch.float32)
    run = own_engine_of(OP, sample, 24)
    wanted, last = run(sample)
    for parts in cut_into(11, (1, 2, 5)):
        state, done, outputs = sample["past_state"], 0, []
        for part in parts:
            timed = ("drive", "force", "force_mask")
            given = {name: sample[name][:, done : done + part] for name in timed}
            output, present = run({**sample, **given, "past_state": state})
            outputs.append(output)
            state, done = torch.from_numpy(present), done + part
        assert np.array_equal(np.concatenate(outputs, 1), wanted), parts
        assert np.array_equal(state.numpy(), last), parts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_state_in_single(
    dtype: torch.dtype, close: Callable[..., None]
) -> None:
    """Sums are taken in float32, outputs rounded once."""
    sample = draw(dtype=dtype)
    output, state = piecewise_linear_rnn(**sample)
    wanted, last = OP.reference(**widened(sample))
    assert (output.dtype, state.dtype) == (dtype, torch.float32)
    close(output.double(), wanted, OP.tolerance[dtype])
    close(state, last, 1e-6)


@pytest.mark.parametrize("forced", [0, 3])
def test_gradients_are_those_of_the_function(forced: int) -> None:
    """Against finite differences, for every tensor of numbers."""
    sample = draw(5, forced=forced)
    numbers = [n for n, x in sample.items() if isinstance(x, Tensor) and x.is_floating_point()]
    rest = {name: value for name, value in sample.items() if name not in numbers}
    leaves = [sample[name].clone().requires_grad_() for name in numbers]
    assert torch.autograd.gradcheck(
        lambda *x: piecewise_linear_rnn(**dict(zip(numbers, x, strict=True)), **rest), leaves
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drive": torch.zeros(2, 5)}, "drive"),
        ({"num_relu": 6}, "num_relu is 6; of 5 units it should be 0 to 5"),
        ({"num_relu": -1}, "num_relu is -1"),
        ({"A": torch.zeros(4)}, "A has"),
        ({"A": torch.zeros(5)}, r"A is torch\.float32"),
        ({"W": torch.zeros(5, 4)}, "W has"),
        ({"h": torch.zeros(4)}, "h has"),
        ({"force": torch.zeros(2, 9, 6)}, "force has the shape .* n at most 5"),
        ({"force": torch.zeros(2, 8, 3)}, "force has"),
        ({"force": None}, "force_mask is given, but no force"),
        ({"force_mask": torch.zeros(2, 8, dtype=torch.bool)}, "force_mask has"),
        ({"force_mask": torch.zeros(2, 9)}, r"force_mask is torch\.float32"),
        ({"past_state": torch.zeros(2, 4)}, "past_state has"),
        ({"past_state": torch.zeros(2, 5)}, r"past_state is torch\.float32"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: Sample, message: str) -> None:
    """The error names the argument."""
    with pytest.raises(InputError, match=message):
        piecewise_linear_rnn(**{**draw(), **change})
