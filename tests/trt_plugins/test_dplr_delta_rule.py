"""DPLRDeltaRule's kernel equals the operator in float64: every form, length and size."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from intaglio.errors import UnsupportedError
from intaglio.ops.op import Sample
from intaglio.trt_plugins.dplr_delta_rule import PLUGIN, kernels
from intaglio.trt_plugins.launch_torch import describe, launch, run
from intaglio.trt_plugins.plugin import Input, Request

Check = Callable[..., None]


def draw(
    time: int,
    size: tuple[int, int, int] = (2, 5, 7),
    *,
    decay: bool = True,
    state: bool = True,
    steep: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Sample:
    """Arguments as RWKV-7 has them; `steep` scales the log decays."""
    generator = torch.Generator().manual_seed(0)
    heads, K, V = size

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    keys = (2, time, heads, K)
    direction = F.normalize(normal(*keys), dim=-1)
    made = {
        "query": normal(*keys).flatten(2),
        "key": normal(*keys).flatten(2),
        "value": normal(2, time, heads * V),
        "a": -direction.flatten(2),
        "b": (direction * normal(*keys).sigmoid()).flatten(2),
    }
    if decay:
        made["decay"] = -steep * normal(*keys).sigmoid().flatten(2)
    sample: Sample = {name: x.to(dtype) for name, x in made.items()} | {"num_heads": heads}
    if state:
        sample["past_state"] = normal(2, heads, K, V).float()
    return sample


def request(sample: Sample) -> Request:
    """The sample's request."""
    tensors = {name: x for name, x in sample.items() if isinstance(x, Tensor)}
    return Request(
        attributes=PLUGIN.op.attributes(sample),
        inputs={name: describe(x) for name, x in tensors.items()},
        sm=90,
    )


@pytest.mark.parametrize(("decay", "state"), list(product((False, True), repeat=2)))
@pytest.mark.parametrize("time", [1, 9])
def test_every_form_of_a_step_and_of_more(
    check: Check, decay: bool, state: bool, time: int
) -> None:
    """With and without decays and states."""
    check(PLUGIN, draw(time, decay=decay, state=state))


@pytest.mark.parametrize("state", [False, True])
def test_no_token_leaves_the_state_as_it_is(state: bool) -> None:
    """It is written all the same, zeros where it starts."""
    sample = draw(0, state=state)
    output, last = run(kernels(request(sample)), [sample.get(name) for name in PLUGIN.inputs])
    assert output.shape == (2, 0, 14)
    assert torch.equal(last, sample.get("past_state", torch.zeros(2, 2, 5, 7)))


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 33, 65), (1, 130, 9), (1, 256, 40)])
def test_sizes_that_no_tile_divides(check: Check, size: tuple[int, int, int]) -> None:
    """Few columns and many, as many keys as a program holds."""
    check(PLUGIN, draw(3, size))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(check: Check, dtype: torch.dtype) -> None:
    """Activations of 16 bits; the state stays in float32."""
    check(PLUGIN, draw(12, (2, 34, 20), dtype=dtype))


def test_decays_that_forget_everything(check: Check) -> None:
    """Of e^{-1000} nothing is left, and nothing is infinite."""
    check(PLUGIN, draw(6, steep=1000.0))


def test_the_state_may_be_written_in_place() -> None:
    """Of past and present in one buffer comes what comes of two."""
    sample = draw(5)
    made = kernels(request(sample))
    inputs = [sample[name] for name in PLUGIN.inputs]
    wanted, last = run(made, inputs)
    state, output = sample["past_state"].clone(), torch.full_like(sample["value"], torch.nan)
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
        for name in ("query", "key", "value", "a", "b", "decay"):
            given[name] = sample[name][:, done : done + part].contiguous()
        output, state = run(made, [given[name] for name in PLUGIN.inputs])
        outputs.append(output)
        done += part
    assert torch.equal(torch.cat(outputs, 1), wanted)
    assert torch.equal(state, last)


def test_what_no_kernel_fits_is_told() -> None:
    """Wider heads than a program holds, and sizes or dtypes that kernels need to know."""

    def ask(dtype: str, width: int | None) -> None:
        names = ("query", "key", "value", "a", "b")
        inputs = dict.fromkeys(names, Input(dtype, (None, None, width)))
        kernels(Request(attributes={"num_heads": 2}, inputs=inputs, sm=90))

    with pytest.raises(UnsupportedError, match="heads of 257 keys and 257 values; at most 256"):
        ask("float16", 514)
    with pytest.raises(UnsupportedError, match="query: axis -1 is dynamic"):
        ask("float16", None)
    with pytest.raises(UnsupportedError, match="query is float64"):
        ask("float64", 8)
