"""DiagonalSSM: doubling, loop and the body in ONNX Runtime say the same, however time is cut."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from intaglio.errors import InputError
from intaglio.ops import DIAGONAL_SSM, diagonal_ssm, linear_attention
from intaglio.ops.op import Sample

OP = DIAGONAL_SSM


def draw(
    time: int = 9, dtype: torch.dtype = torch.float64, lti: bool = False, kind: str = "mamba"
) -> Sample:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    state = torch.float64 if dtype == torch.float64 else torch.float32
    mixing = (3, 4) if lti else (2, time, 4)
    return {
        "input": normal(2, time, 3),
        "A": -normal(3, 4).exp().to(state),
        "B": normal(*mixing),
        "C": normal(*mixing),
        "delta": normal(2, time, 3).exp(),
        "past_state": normal(2, 3, 4).to(state),
        "discretization": kind,
        "lti": lti,
    }


@pytest.mark.parametrize("lti", [False, True])
@pytest.mark.parametrize("kind", ["mamba", "none"])
def test_doubling_equals_the_loop(lti: bool, kind: str, close: Callable[..., None]) -> None:
    """For lengths that are and are not powers of two, and none at all."""
    for time in (0, 1, 2, 3, 8, 13):
        sample = draw(time, lti=lti, kind=kind)
        for got, wanted in zip(diagonal_ssm(**sample), OP.reference(**sample), strict=True):
            close(got, wanted, OP.tolerance[torch.float64])


def test_one_state_of_each_channel_is_linear_attention_with_a_head_for_it(
    close: Callable[..., None],
) -> None:
    """Two operators of two definitions: decay per key, values of one entry."""
    sample = draw()
    u, delta, a = sample["input"], sample["delta"], sample["A"]
    keys, queries = (
        x[:, :, None].expand(-1, -1, 3, -1).flatten(2) for x in (sample["B"], sample["C"])
    )
    output, state = linear_attention(
        queries, keys, delta * u, sample["past_state"][..., None],
        (delta[..., None] * a).flatten(2),
        update_rule="gated", q_num_heads=3, kv_num_heads=3, scale=1.0,
    )  # fmt: skip
    got, present = diagonal_ssm(**sample)
    close(got, output, 1e-12)
    close(present, state[..., 0], 1e-12)


def test_the_body_computes_the_samples_in_onnx_runtime(
    own_engine_of: Callable[..., Any], close: Callable[..., None]
) -> None:
    """At the opset of the portable graph and at that of the lowered one."""
    for sample in OP.samples(torch.float32):
        exact = {n: x.double() if isinstance(x, Tensor) else x for n, x in sample.items()}
        for opset in (24, 27):
            found = own_engine_of(OP, sample, opset)(sample)
            for got, wanted in zip(found, OP.reference(**exact), strict=True):
                close(got, wanted, OP.tolerance[torch.float32])


def test_any_cut_of_time_is_bit_identical_on_onnx_runtime(
    own_engine_of: Callable[..., Any], cut_into: Callable[..., list[list[int]]]
) -> None:
    """From a state that is not zero."""
    sample = draw(11, torch.float32)
    run = own_engine_of(OP, sample, 24)
    wanted, last = run(sample)
    for parts in cut_into(11, (1, 2, 5)):
        state, done, outputs = sample["past_state"], 0, []
        for part in parts:
            given = {n: sample[n][:, done : done + part] for n in ("input", "B", "C", "delta")}
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
    exact = {n: x.double() if isinstance(x, Tensor) else x for n, x in sample.items()}
    output, state = diagonal_ssm(**sample)
    wanted, last = OP.reference(**exact)
    assert (output.dtype, state.dtype) == (dtype, torch.float32)
    close(output.double(), wanted, OP.tolerance[dtype])
    close(state, last, 1e-6)


@pytest.mark.parametrize("lti", [False, True])
def test_gradients_are_those_of_the_function(lti: bool) -> None:
    """Against finite differences, for every tensor argument."""
    sample = draw(5, lti=lti)
    tensors = [name for name, value in sample.items() if isinstance(value, Tensor)]
    rest = {name: value for name, value in sample.items() if name not in tensors}
    leaves = [sample[name].clone().requires_grad_() for name in tensors]
    assert torch.autograd.gradcheck(
        lambda *x: diagonal_ssm(**dict(zip(tensors, x, strict=True)), **rest), leaves
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"discretization": "zoh"}, "discretization is 'zoh'"),
        ({"input": torch.zeros(2, 9)}, "input"),
        ({"A": torch.zeros(4, 4)}, "A has"),
        ({"A": torch.zeros(3, 4)}, r"A is torch\.float32"),
        ({"B": torch.zeros(3, 4)}, "B has"),
        ({"C": torch.zeros(2, 9, 5)}, "C has"),
        ({"delta": torch.zeros(2, 9, 4)}, "delta has"),
        ({"past_state": torch.zeros(2, 4, 3)}, "past_state has"),
        ({"past_state": torch.zeros(2, 3, 4)}, r"past_state is torch\.float32"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: Sample, message: str) -> None:
    """The error names the argument."""
    with pytest.raises(InputError, match=message):
        diagonal_ssm(**{**draw(), **change})
