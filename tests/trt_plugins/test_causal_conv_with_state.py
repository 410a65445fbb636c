"""CausalConvWithState's kernel equals the operator in float64, and hands its state on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from intaglio.ops.op import Sample
from intaglio.trt_plugins.causal_conv_with_state import PLUGIN, kernels
from intaglio.trt_plugins.plugin import Input, Request, UnsupportedError
from intaglio.trt_plugins.run import launch, request_of, run

Check = Callable[..., None]


def draw(
    time: int,
    channels: int = 5,
    taps: int = 4,
    *,
    state: bool = True,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Sample:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    sample: Sample = {
        "input": normal(2, channels, time),
        "weight": normal(channels, 1, taps),
        "activation": "silu",
    }
    if state:
        sample["past_state"] = normal(2, channels, taps - 1)
    if bias:
        sample["bias"] = normal(channels)
    return sample


def test_the_samples_of_the_operator(check: Check) -> None:
    """Kernels longer and shorter than the input, with and without bias, state, activation."""
    for sample in PLUGIN.op.samples(torch.float32):
        check(PLUGIN, sample)


@pytest.mark.parametrize("time", [0, 1, 2, 3, 64, 67])
@pytest.mark.parametrize("state", [False, True])
def test_any_length(check: Check, time: int, state: bool) -> None:
    """No token, fewer than there are taps, and more than a tile holds."""
    check(PLUGIN, draw(time, state=state))


@pytest.mark.parametrize("taps", [2, 3, 7])
def test_any_number_of_taps(check: Check, taps: int) -> None:
    """Also where the states are no power of two, and channels exceed a program."""
    check(PLUGIN, draw(9, channels=130, taps=taps, bias=False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(check: Check, dtype: torch.dtype) -> None:
    """The state holds inputs as they were, bit for bit."""
    sample = draw(5, dtype=dtype)
    check(PLUGIN, sample)
    request, inputs = request_of(PLUGIN, sample, 90)
    _, state = run(kernels(request), inputs)
    assert torch.equal(state, sample["input"][..., -3:])


def test_past_and_present_state_may_be_one_buffer() -> None:
    """A state that is bound in place is read before it is written."""
    sample = draw(2)
    request, inputs = request_of(PLUGIN, sample, 90)
    made = kernels(request)
    output, state = run(made, inputs)
    (kernel,) = made.ways[-1].kernels
    again, shared = torch.empty_like(output), inputs[3]
    assert shared is not None
    shapes = [None if x is None else tuple(x.shape) for x in inputs]
    launch(kernel, shapes, {"input": inputs, "output": [again, shared]})

    assert torch.equal(shared, state)
    assert torch.equal(again, output)


def test_what_no_kernel_fits_is_told() -> None:
    """More taps than are unrolled, and channels that are not known."""
    attributes = {"activation": "none"}
    inputs = {"input": Input("float16", (None, 8, None)), "weight": Input("float16", (8, 1, 40))}
    with pytest.raises(UnsupportedError, match="a convolution of 40 taps; at most 32"):
        kernels(Request(attributes=attributes, inputs=inputs, sm=90))
    inputs["input"] = Input("float16", (None, None, None))
    with pytest.raises(UnsupportedError, match="input: axis 1 is dynamic"):
        kernels(Request(attributes=attributes, inputs=inputs, sm=90))
