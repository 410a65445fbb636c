"""DiagonalSSM's kernels equal the operator in float64: every discretization, form and length."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from intaglio.errors import UnsupportedError
from intaglio.ops.op import Sample
from intaglio.trt_plugins.diagonal_ssm import PLUGIN, kernels
from intaglio.trt_plugins.launch_torch import describe, launch, run
from intaglio.trt_plugins.plugin import Input, Request

Check = Callable[..., None]


def draw(
    time: int,
    size: tuple[int, int] = (5, 4),
    *,
    batch: int = 2,
    kind: str = "mamba",
    lti: bool = False,
    delta: bool = True,
    state: bool = True,
    steep: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Sample:
    """Random arguments; `steep` scales the rates of decay."""
    generator = torch.Generator().manual_seed(0)
    D, N = size

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mixing = (D, N) if lti else (batch, time, N)
    sample: Sample = {
        "input": normal(batch, time, D).to(dtype),
        "A": (-steep * normal(D, N).exp()).float(),
        "B": normal(*mixing).to(dtype),
        "C": normal(*mixing).to(dtype),
        "discretization": kind,
        "lti": lti,
    }
    if delta:
        sample["delta"] = normal(batch, time, D).exp().to(dtype)
    if state:
        sample["past_state"] = normal(batch, D, N).float()
    return sample


def request(sample: Sample) -> Request:
    """The sample's request."""
    tensors = {name: x for name, x in sample.items() if isinstance(x, Tensor)}
    return Request(
        attributes=PLUGIN.op.attributes(sample),
        inputs={name: describe(x) for name, x in tensors.items()},
        sm=90,
    )


@pytest.mark.parametrize(("kind", "lti"), list(product(("none", "mamba"), (False, True))))
@pytest.mark.parametrize(("delta", "state"), list(product((False, True), repeat=2)))
@pytest.mark.parametrize("time", [1, 9])
def test_every_form_of_a_step_and_of_more(
    check: Check, kind: str, lti: bool, delta: bool, state: bool, time: int
) -> None:
    """With and without step sizes and states; B and C of each token, or the same for all."""
    check(PLUGIN, draw(time, kind=kind, lti=lti, delta=delta, state=state))


@pytest.mark.parametrize("state", [False, True])
def test_no_token_leaves_the_state_as_it_is(state: bool) -> None:
    """It is written all the same, zeros where it starts."""
    sample = draw(0, state=state)
    output, last = run(kernels(request(sample)), [sample.get(name) for name in PLUGIN.inputs])
    assert output.shape == (2, 0, 5)
    assert torch.equal(last, sample.get("past_state", torch.zeros(2, 5, 4)))


@pytest.mark.parametrize("size", [(130, 1), (33, 16), (9, 63), (3, 200), (2, 256)])
def test_sizes_that_no_tile_divides(check: Check, size: tuple[int, int]) -> None:
    """One state to as many as a program holds, and more channels than one has."""
    check(PLUGIN, draw(3, size))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["none", "mamba"])
def test_half_precision(check: Check, kind: str, dtype: torch.dtype) -> None:
    """Activations of 16 bits; rates and state stay in float32."""
    check(PLUGIN, draw(12, (34, 16), kind=kind, dtype=dtype))


def test_decays_that_forget_everything(check: Check) -> None:
    """Of e^{-1000} nothing is left, and nothing is infinite."""
    check(PLUGIN, draw(6, steep=1000.0))


def test_the_state_may_be_written_in_place() -> None:
    """Of past and present in one buffer comes what comes of two."""
    sample = draw(5)
    made = kernels(request(sample))
    inputs = [sample[name] for name in PLUGIN.inputs]
    wanted, last = run(made, inputs)
    state, output = sample["past_state"].clone(), torch.full_like(sample["input"], torch.nan)
    (kernel,) = made.ways[0].kernels
    shapes = [tuple(x.shape) for x in inputs]
    launch(kernel, shapes, {"input": [*inputs[:5], state], "output": [output, state]})

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
        for name in ("input", "B", "C", "delta"):
            given[name] = sample[name][:, done : done + part].contiguous()
        output, state = run(made, [given[name] for name in PLUGIN.inputs])
        outputs.append(output)
        done += part
    assert torch.equal(torch.cat(outputs, 1), wanted)
    assert torch.equal(state, last)


def test_what_no_kernel_fits_is_told() -> None:
    """More states than a program holds, and sizes or dtypes that kernels need to know."""

    def ask(dtype: str, *fixed: int | None) -> None:
        inputs = {
            "input": Input(dtype, (None, None, 8)),
            "A": Input("float32", fixed),
            "B": Input(dtype, (None, None, None)),
            "C": Input(dtype, (None, None, None)),
        }
        kernels(Request(attributes={"discretization": "none", "lti": 0}, inputs=inputs, sm=90))

    with pytest.raises(UnsupportedError, match="257 states of a channel; at most 256"):
        ask("float16", 8, 257)
    with pytest.raises(UnsupportedError, match="A: axis 1 is dynamic"):
        ask("float16", 8, None)
    with pytest.raises(UnsupportedError, match="input is float64"):
        ask("float64", 8, 4)
