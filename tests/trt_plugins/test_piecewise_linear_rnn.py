"""PiecewiseLinearRNN's kernels equal the operator in float64: every form, size and length."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from intaglio.errors import UnsupportedError
from intaglio.ops.op import Sample
from intaglio.trt_plugins.launch_torch import describe, launch, run
from intaglio.trt_plugins.piecewise_linear_rnn import PLUGIN, kernels
from intaglio.trt_plugins.plugin import Input, Request

Check = Callable[..., None]


def draw(
    time: int,
    units: int = 20,
    num_relu: int = 2,
    *,
    forced: int = 3,
    mask: bool = True,
    state: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Sample:
    """Random arguments of a network whose states stay bounded, so that rounding does too."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sample: Sample = {
        "drive": normal(2, time, units).to(dtype),
        "A": (0.5 * normal(units).tanh()).float(),
        "W": (0.4 * normal(units, units) / units**0.5).float(),
        "h": normal(units).float(),
        "num_relu": num_relu,
    }
    if forced:
        sample["force"] = (3.0 * normal(2, time, forced)).to(dtype)
        if mask:
            sample["force_mask"] = normal(2, time) > 0
    if state:
        sample["past_state"] = normal(2, units).float()
    return sample


def request(sample: Sample) -> Request:
    """The sample's request."""
    tensors = {name: x for name, x in sample.items() if isinstance(x, Tensor)}
    return Request(
        attributes=PLUGIN.op.attributes(sample),
        inputs={name: describe(x) for name, x in tensors.items()},
        sm=90,
    )


def test_the_samples_of_the_operator(check: Check) -> None:
    """A free run, driven ones, and every way to force."""
    for sample in PLUGIN.op.samples(torch.float32):
        check(PLUGIN, sample)


@pytest.mark.parametrize(("forced", "mask"), [(0, False), (3, False), (3, True), (20, True)])
@pytest.mark.parametrize("num_relu", [0, 2, 20])
@pytest.mark.parametrize("state", [False, True])
def test_every_form_of_a_step_and_of_more(
    check: Check, num_relu: int, forced: int, mask: bool, state: bool
) -> None:
    """From no unit rectified to all, from none forced to all."""
    for time in (1, 9):
        check(PLUGIN, draw(time, num_relu=num_relu, forced=forced, mask=mask, state=state))


@pytest.mark.parametrize("state", [False, True])
def test_no_token_leaves_the_state_as_it_is(state: bool) -> None:
    """It is written all the same, zeros where it starts."""
    sample = draw(0, state=state)
    output, last = run(kernels(request(sample)), [sample.get(name) for name in PLUGIN.inputs])
    assert output.shape == (2, 0, 20)
    assert torch.equal(last, sample.get("past_state", torch.zeros(2, 20)))


@pytest.mark.parametrize("units", [1, 33, 64, 127, 128, 129, 200, 256])
def test_widths_within_registers_and_beyond(check: Check, units: int) -> None:
    """W is kept, or read again in blocks of rows; few widths are those of a tile."""
    check(PLUGIN, draw(4, units, min(units, 7), forced=min(units, 5)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("units", [20, 130])
def test_half_precision(check: Check, units: int, dtype: torch.dtype) -> None:
    """Activations of 16 bits; parameters and state stay in float32."""
    check(PLUGIN, draw(9, units, dtype=dtype))


@pytest.mark.parametrize("num_relu", [0, 2, 20])
def test_a_state_that_is_not_a_number_stays_none(num_relu: int) -> None:
    """ReLU of NaN is NaN: a row that diverged does not come back looking well."""
    sample = draw(1, num_relu=num_relu, forced=0)
    sample["past_state"][0, 19] = torch.nan
    output, last = run(kernels(request(sample)), [sample.get(name) for name in PLUGIN.inputs])
    assert last[0].isnan().all()
    assert output[0].isnan().all()
    assert torch.isfinite(last[1]).all()


def test_the_state_may_be_written_in_place() -> None:
    """Of past and present in one buffer comes what comes of two."""
    sample = draw(5)
    made = kernels(request(sample))
    inputs = [sample[name] for name in PLUGIN.inputs]
    wanted, last = run(made, inputs)
    state, output = sample["past_state"].clone(), torch.full_like(sample["drive"], torch.nan)
    (kernel,) = made.ways[0].kernels
    shapes = [tuple(x.shape) for x in inputs]
    launch(kernel, shapes, {"input": [*inputs[:6], state], "output": [output, state]})

    assert torch.equal(output, wanted)
    assert torch.equal(state, last)


def test_parts_equal_the_whole() -> None:
    """The state that a call leaves is where the next goes on, bit for bit."""
    sample = draw(9)
    made = kernels(request(sample))
    wanted, last = run(made, [sample[name] for name in PLUGIN.inputs])
    state, done, outputs = sample["past_state"], 0, []
    for part in (1, 0, 5, 3):
        given = {**sample, "past_state": state}
        for name in ("drive", "force", "force_mask"):
            given[name] = sample[name][:, done : done + part].contiguous()
        output, state = run(made, [given[name] for name in PLUGIN.inputs])
        outputs.append(output)
        done += part
    assert torch.equal(torch.cat(outputs, 1), wanted)
    assert torch.equal(state, last)


def test_what_no_kernel_fits_is_told() -> None:
    """More units than a program holds, and sizes or dtypes that kernels need to know."""

    def ask(dtype: str, units: int | None) -> None:
        inputs = {
            "drive": Input(dtype, (None, None, units)),
            "A": Input("float32", (units,)),
            "W": Input("float32", (units, units)),
            "h": Input("float32", (units,)),
        }
        kernels(Request(attributes={"num_relu": 0}, inputs=inputs, sm=90))

    with pytest.raises(UnsupportedError, match="a network of 257 units; at most 256"):
        ask("float16", 257)
    with pytest.raises(UnsupportedError, match="A: axis 0 is dynamic"):
        ask("float16", None)
    with pytest.raises(UnsupportedError, match="drive is float64"):
        ask("float64", 8)
