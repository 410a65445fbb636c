"""CausalConvWithState: convolution, loop, standard and native kernel say the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from intaglio.errors import InputError
from intaglio.ops import CAUSAL_CONV_WITH_STATE, causal_conv_with_state
from intaglio.ops.op import Sample

OP = CAUSAL_CONV_WITH_STATE


def draw(
    batch: int = 2, time: int = 9, kernel: int = 4, dtype: torch.dtype = torch.float64
) -> Sample:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "input": normal(batch, 5, time),
        "weight": normal(5, 1, kernel),
        "bias": normal(5),
        "past_state": normal(batch, 5, kernel - 1),
        "activation": "silu",
    }


@pytest.mark.parametrize("time", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_the_convolution_equals_the_loop(
    time: int, kernel: int, close: Callable[..., None]
) -> None:
    """Sequences shorter and longer than the kernel."""
    sample = draw(time=time, kernel=kernel)
    for got, wanted in zip(causal_conv_with_state(**sample), OP.reference(**sample), strict=True):
        close(got, wanted, 1e-12)


def test_gradients_are_those_of_the_function() -> None:
    """Against finite differences."""
    sample = draw(time=5)
    names = ("input", "weight", "bias", "past_state")
    leaves = [sample[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(
        lambda *x: causal_conv_with_state(*x, activation="silu"), leaves
    )


def test_the_standard_and_the_native_kernel_compute_the_samples(
    engine_of: Callable[..., Any], close: Callable[..., None]
) -> None:
    """The standard's body, inlined by ONNX Runtime, and `com.microsoft` against the loop."""
    for sample in OP.samples(torch.float32):
        exact = {n: x.double() if isinstance(x, Tensor) else x for n, x in sample.items()}
        for domain in ("", "com.microsoft"):
            found = engine_of(OP, sample, domain, 27)(sample)
            for got, wanted in zip(found, OP.reference(**exact), strict=True):
                close(got, wanted, OP.tolerance[torch.float32])


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_any_cut_of_time_is_bit_identical_on_onnx_runtime(
    batch: int, engine_of: Callable[..., Any], cut_into: Callable[..., list[list[int]]]
) -> None:
    """Parts shorter and longer than the kernel, from a state that is not zero."""
    time = 67
    sample = draw(batch=batch, time=time, dtype=torch.float32)
    run = engine_of(OP, sample, "com.microsoft", 24)
    wanted, last = run(sample)
    for parts in cut_into(time, (1, 2, 3, 4, 5, 63, 64, 65)):
        state, done, outputs = sample["past_state"], 0, []
        for part in parts:
            given = {"input": sample["input"][..., done : done + part], "past_state": state}
            output, present = run({**sample, **given})
            outputs.append(output)
            state, done = torch.from_numpy(present), done + part
        assert np.array_equal(np.concatenate(outputs, 2), wanted), parts
        assert np.array_equal(state.numpy(), last), parts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "relu"}, "activation"),
        ({"weight": torch.zeros(5, 2, 4)}, "weight"),
        ({"input": torch.zeros(2, 5)}, "input"),
        ({"past_state": torch.zeros(2, 5, 4)}, "past_state"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: Sample, message: str) -> None:
    """The error names the argument."""
    with pytest.raises(InputError, match=message):
        causal_conv_with_state(**{**draw(), **change})
