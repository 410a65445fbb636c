"""DPLRDeltaRule: chunks, loop and the body in ONNX Runtime say the same, however time is cut."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from intaglio.errors import InputError
from intaglio.ops import DPLR_DELTA_RULE, dplr_delta_rule, linear_attention
from intaglio.ops.op import Sample

OP = DPLR_DELTA_RULE
H, K, V = 2, 4, 3
TIMED = ("query", "key", "value", "a", "b", "decay")


def draw(time: int = 9, dtype: torch.dtype = torch.float64, steep: float = 1.0) -> Sample:
    """As RWKV-7 has them; `steep` scales the log decays."""
    generator = torch.Generator().manual_seed(time)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    keys = (2, time, H, K)
    direction = F.normalize(normal(*keys), dim=-1)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    made = {
        "query": normal(*keys).flatten(2),
        "key": normal(*keys).flatten(2),
        "value": normal(2, time, H * V),
        "a": -direction.flatten(2),
        "b": (direction * normal(*keys).sigmoid()).flatten(2),
        "decay": -steep * normal(*keys).sigmoid().flatten(2),
    }
    past = normal(2, H, K, V).to(state)
    return {name: x.to(dtype) for name, x in made.items()} | {"past_state": past, "num_heads": H}


@pytest.mark.parametrize("left_out", [(), ("decay",), ("past_state",), ("decay", "past_state")])
def test_chunks_equal_the_loop(left_out: tuple[str, ...], close: Callable[..., None]) -> None:
    """For lengths below, at and beyond a chunk, and none at all."""
    for time in (0, 1, 2, 31, 32, 33, 70):
        sample = {name: x for name, x in draw(time).items() if name not in left_out}
        for got, wanted in zip(dplr_delta_rule(**sample), OP.reference(**sample), strict=True):
            close(got, wanted, OP.tolerance[torch.float64])


@pytest.mark.parametrize("steep", [30.0, 1e4, float("inf")])
def test_decays_that_forget_everything(steep: float, close: Callable[..., None]) -> None:
    """No sum of log decays is ever taken from another."""
    sample = draw(70, steep=steep)
    for got, wanted in zip(dplr_delta_rule(**sample), OP.reference(**sample), strict=True):
        assert wanted.isfinite().all()
        close(got, wanted, OP.tolerance[torch.float64])


def test_the_delta_rules_are_of_this_form(close: Callable[..., None]) -> None:
    """Two operators of two definitions: what decayed is read along k, and rate times k takes it."""
    sample = draw()
    rate = torch.sigmoid(sample["value"][..., :H])
    unit = F.normalize(torch.unflatten(sample["key"], -1, (H, K)), dim=-1)
    key, scaled = unit.flatten(2), (unit * rate[..., None]).flatten(2)
    wanted = linear_attention(
        sample["query"], key, sample["value"], sample["past_state"], sample["decay"], rate,
        update_rule="gated_delta", q_num_heads=H, kv_num_heads=H, scale=1.0,
    )  # fmt: skip
    got = dplr_delta_rule(
        **sample | {"key": scaled, "a": -key * sample["decay"].exp(), "b": scaled}
    )
    for one, other in zip(got, wanted, strict=True):
        close(one, other, 1e-12)


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
            given = {n: sample[n][:, done : done + part] for n in TIMED}
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
    output, state = dplr_delta_rule(**sample)
    wanted, last = OP.reference(**exact)
    assert (output.dtype, state.dtype) == (dtype, torch.float32)
    close(output.double(), wanted, OP.tolerance[dtype])
    close(state, last, 1e-6)


def test_gradients_are_those_of_the_function() -> None:
    """Against finite differences, for every tensor argument, over two chunks."""
    sample = {n: x[:1] if isinstance(x, Tensor) else x for n, x in draw(34).items()}
    tensors = [name for name, value in sample.items() if isinstance(value, Tensor)]
    leaves = [sample[name].clone().requires_grad_() for name in tensors]
    assert torch.autograd.gradcheck(
        lambda *x: dplr_delta_rule(**dict(zip(tensors, x, strict=True)), num_heads=H),
        leaves,
        fast_mode=True,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0"),
        ({"num_heads": 3}, "query has .* a multiple of its 3 heads"),
        ({"query": torch.zeros(2, 9)}, "query has"),
        ({"value": torch.zeros(2, 9, 5, dtype=torch.float64)}, "value has"),
        ({"value": torch.zeros(2, 8, 6, dtype=torch.float64)}, "value has"),
        ({"key": torch.zeros(2, 9, 6, dtype=torch.float64)}, "key has"),
        ({"a": torch.zeros(2, 9, 8)}, r"a is torch\.float32"),
        ({"b": torch.zeros(2, 9, H, dtype=torch.float64)}, "b has"),
        ({"decay": torch.zeros(2, 9, H, dtype=torch.float64)}, "decay has"),
        ({"past_state": torch.zeros(2, H, V, K, dtype=torch.float64)}, "past_state has"),
        ({"past_state": torch.zeros(2, H, K, V)}, r"past_state is torch\.float32"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: Sample, message: str) -> None:
    """The error names the argument."""
    with pytest.raises(InputError, match=message):
        dplr_delta_rule(**{**draw(), **change})
