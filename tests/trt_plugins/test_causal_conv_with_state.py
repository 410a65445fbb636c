"""CausalConvWithState's kernels equal the operator in float64, at any length and cut of time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from intaglio.errors import UnsupportedError
from intaglio.ops.op import Sample
from intaglio.runtime.launch import evaluate
from intaglio.trt_plugins.causal_conv_with_state import PLUGIN, TOKENS, kernels
from intaglio.trt_plugins.launch_torch import describe, launch, run
from intaglio.trt_plugins.plugin import Input, Request

Check = Callable[..., None]
STEP, LONG = 0, 1  # ways


def draw(
    time: int,
    taps: int = 4,
    *,
    channels: int = 6,
    batch: int = 2,
    activation: str = "silu",
    dtype: torch.dtype = torch.float32,
) -> Sample:
    """Random arguments; no tile divides the channels."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "input": normal(batch, channels, time),
        "weight": normal(channels, 1, taps),
        "bias": normal(channels),
        "past_state": normal(batch, channels, taps - 1),
        "activation": activation,
    }


def request(sample: Sample) -> Request:
    """The sample's request."""
    tensors = {name: x for name, x in sample.items() if isinstance(x, Tensor)}
    return Request(
        attributes=PLUGIN.op.attributes(sample),
        inputs={name: describe(x) for name, x in tensors.items()},
        sm=90,
    )


def test_the_samples_of_the_operator(check: Check) -> None:
    """With and without bias and state, every activation."""
    for sample in PLUGIN.op.samples(torch.float32):
        check(PLUGIN, sample)


@pytest.mark.parametrize(
    ("taps", "time"), [(4, 0), (4, 1), (4, 2), (4, TOKENS + 9), (1, 2), (9, 2), (9, TOKENS)]
)
def test_any_length(check: Check, taps: int, time: int) -> None:
    """No token at all, fewer than the state holds, and more than a tile."""
    check(PLUGIN, draw(time, taps))


@pytest.mark.parametrize("time", [0, 1, 2])
def test_a_tile_of_one_token_is_for_steps(time: int) -> None:
    """It computes no second token, so it is never the way for two."""
    way = kernels(request(draw(time))).ways[STEP]
    assert way.when is not None
    assert evaluate(way.when, [(2, 6, time)]) == (time < 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("time", [1, 5])
def test_half_precision(check: Check, time: int, dtype: torch.dtype) -> None:
    """Sums are taken in float32; the state is the inputs as they are."""
    sample = draw(time, channels=130 if time < 2 else 6, dtype=dtype)
    check(PLUGIN, sample)


@pytest.mark.parametrize("time", [0, 1, 2, TOKENS + 1])
def test_the_state_may_be_written_in_place(time: int) -> None:
    """Of past and present in one buffer comes what comes of two."""
    sample = draw(time)
    made = kernels(request(sample))
    inputs = [sample[name] for name in PLUGIN.inputs]
    wanted, last = run(made, inputs)
    shapes = [tuple(x.shape) for x in inputs]
    state = sample["past_state"].clone()
    output = torch.full_like(sample["input"], torch.nan)
    way = next(way for way in made.ways if way.when is None or evaluate(way.when, shapes))
    for kernel in way.kernels:
        launch(kernel, shapes, {"input": [*inputs[:3], state], "output": [output, state]})

    assert torch.equal(output, wanted)
    assert torch.equal(state, last)


def test_only_tiles_at_the_first_token_touch_the_state() -> None:
    """A later one that read it could meet the state that the first has written already."""
    sample = draw(TOKENS + 40, taps=8)
    made = kernels(request(sample))
    inputs = [sample[name] for name in PLUGIN.inputs]
    wanted, _ = run(made, inputs)
    state = torch.full_like(sample["past_state"], torch.nan)
    output, _ = run(made, [*inputs[:3], state])

    assert output[..., :7].isnan().all()
    assert torch.equal(output[..., TOKENS:], wanted[..., TOKENS:])


def test_parts_equal_the_whole() -> None:
    """The state that a call leaves is where the next goes on, bit for bit."""
    sample = draw(TOKENS + 9, taps=7)
    wanted, last = run(kernels(request(sample)), [sample[name] for name in PLUGIN.inputs])
    state, done, outputs = sample["past_state"], 0, []
    for part in (1, 3, 0, TOKENS, 5):
        given = {**sample, "input": sample["input"][..., done : done + part].contiguous()}
        given["past_state"] = state
        output, state = run(kernels(request(given)), [given[name] for name in PLUGIN.inputs])
        outputs.append(output)
        done += part
    assert torch.equal(torch.cat(outputs, -1), wanted)
    assert torch.equal(state, last)


def test_what_no_kernel_fits_is_told() -> None:
    """More taps than there are kernels for, and sizes or dtypes that they need to know."""

    def ask(dtype: str, *weight: int | None) -> None:
        inputs = {"input": Input(dtype, (None, 8, None)), "weight": Input(dtype, weight)}
        kernels(Request(attributes={"activation": "none"}, inputs=inputs, sm=90))

    with pytest.raises(UnsupportedError, match="of 33 taps; its kernels are for up to 32"):
        ask("float16", 8, 1, 33)
    with pytest.raises(UnsupportedError, match="weight: axis 2 is dynamic"):
        ask("float16", 8, 1, None)
    with pytest.raises(UnsupportedError, match="input is float64"):
        ask("float64", 8, 1, 4)
