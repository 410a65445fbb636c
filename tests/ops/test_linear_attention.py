"""LinearAttention: chunks, loop, standard and native kernel say the same, however time is cut."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from intaglio.errors import InputError
from intaglio.ops import LINEAR_ATTENTION, linear_attention
from intaglio.ops.op import Sample

RULES = ("linear", "gated", "delta", "gated_delta")
CASES = [
    (rule, per_key, heads)
    for rule in RULES
    for per_key in ((False, True) if "gated" in rule else (False,))
    for heads in ((2, 2), (4, 2))
]
CHUNK = 64


def draw(
    rule: str,
    *,
    per_key: bool = False,
    heads: tuple[int, int] = (2, 2),
    batch: int = 2,
    time: int = 9,
    size: int = 4,
    strongest: float = 30.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Sample:
    """Random arguments: decays in [-strongest, 0], rates in [0, 2], keys of unit length."""
    generator = torch.Generator().manual_seed(seed)
    q_heads, kv_heads = heads

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    key = torch.nn.functional.normalize(normal(batch, time, kv_heads, size), dim=-1)
    sample: Sample = {
        "query": normal(batch, time, q_heads * size),
        "key": key.flatten(2),
        "value": normal(batch, time, kv_heads * (size + 2)),
        "past_state": normal(batch, kv_heads, size, size + 2),
    }
    if "gated" in rule:
        width = kv_heads * (size if per_key else 1)
        sample["decay"] = -strongest * uniform(batch, time, width) ** 4
    if "delta" in rule:
        sample["beta"] = 2 * uniform(batch, time, kv_heads)
    sample = {name: tensor.to(dtype) for name, tensor in sample.items()}
    return {**sample, "update_rule": rule, "q_num_heads": q_heads, "kv_num_heads": kv_heads}


@pytest.mark.parametrize(("rule", "per_key", "heads"), CASES)
def test_chunks_equal_the_loop(
    rule: str, per_key: bool, heads: tuple[int, int], close: Callable[..., None]
) -> None:
    """In float64, for lengths around the chunk, whatever the strength of the decay."""
    for time, strongest in itertools.product((0, 1, 2, 63, 64, 65, 130), (0.0, 0.1, 30.0)):
        sample = draw(rule, per_key=per_key, heads=heads, time=time, strongest=strongest)
        for got, wanted in zip(
            linear_attention(**sample), LINEAR_ATTENTION.reference(**sample), strict=True
        ):
            close(got, wanted, 1e-11)


@pytest.mark.parametrize(("rule", "per_key", "heads"), CASES)
def test_single_precision_stays_accurate_under_strong_decay(
    rule: str, per_key: bool, heads: tuple[int, int], close: Callable[..., None]
) -> None:
    """Decays of -30 and of nearly nothing side by side lose no digits in float32."""
    sample = draw(rule, per_key=per_key, heads=heads, time=130)
    single: Sample = {n: x.float() if isinstance(x, Tensor) else x for n, x in sample.items()}
    for got, wanted in zip(
        linear_attention(**single), LINEAR_ATTENTION.reference(**sample), strict=True
    ):
        assert got.dtype == torch.float32
        close(got, wanted, 5e-6)


def test_no_tokens_leave_the_state_as_it_was() -> None:
    """T = 0 gives no output and the same state."""
    sample = draw("gated_delta", time=0)
    output, state = linear_attention(**sample)
    assert output.shape == (2, 0, 12)
    assert torch.equal(state, sample["past_state"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_state_in_single(
    dtype: torch.dtype, close: Callable[..., None]
) -> None:
    """Sums are taken in float32, outputs rounded once."""
    sample = draw("gated", time=70, dtype=dtype, strongest=1.0)
    sample["past_state"] = sample["past_state"].float()
    exact = {n: x.double() if isinstance(x, Tensor) else x for n, x in sample.items()}
    output, state = linear_attention(**sample)
    wanted_output, wanted_state = LINEAR_ATTENTION.reference(**exact)
    assert (output.dtype, state.dtype) == (dtype, torch.float32)
    close(output.double(), wanted_output, LINEAR_ATTENTION.tolerance[dtype])
    close(state, wanted_state, 1e-6)


@pytest.mark.parametrize(("rule", "per_key", "heads"), CASES)
def test_gradients_are_those_of_the_function(
    rule: str, per_key: bool, heads: tuple[int, int]
) -> None:
    """Against finite differences, over two chunks and a rest, for every tensor argument."""
    sample = draw(rule, per_key=per_key, heads=heads, batch=1, time=5, size=2, strongest=2.0)
    tensors = [name for name, value in sample.items() if isinstance(value, Tensor)]
    rest = {name: value for name, value in sample.items() if name not in tensors}

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        given: dict[str, Any] = dict(zip(tensors, values, strict=True))
        return linear_attention(**given, **rest, chunk_size=2)

    leaves = [sample[name].clone().requires_grad_() for name in tensors]
    assert torch.autograd.gradcheck(function, leaves)


def test_gradients_agree_with_those_of_the_loop_over_chunks() -> None:
    """At full chunk length, where finite differences are too slow."""
    sample = draw("gated_delta", per_key=True, heads=(4, 2), time=130, strongest=3.0)
    tensors = [name for name, value in sample.items() if isinstance(value, Tensor)]
    found = []
    for function in (linear_attention, LINEAR_ATTENTION.reference):
        given = {
            n: sample[n].clone().requires_grad_() if n in tensors else sample[n] for n in sample
        }
        output, state = function(**given)
        torch.autograd.backward(output.square().sum() + state.square().sum())
        found.append([given[name].grad for name in tensors])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


def test_the_torch_operator_is_declared_rightly() -> None:
    """Its schema, its fake tensors and where its gradient is registered are what it does."""
    for sample in LINEAR_ATTENTION.samples(torch.float32):
        tensors = ("query", "key", "value", "past_state", "decay", "beta")
        positional = tuple(
            None if sample.get(name) is None else sample[name].clone().requires_grad_()
            for name in tensors
        )
        options = {"scale": 0.0, "chunk_size": 64}
        options |= {name: value for name, value in sample.items() if name not in tensors}
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(LINEAR_ATTENTION.torch_op, positional, options, test_utils=tests)


def test_the_torch_operator_has_the_gradient_of_the_function() -> None:
    """Called by itself too, with one tensor as query and key, and a second time."""
    sample = draw("gated_delta", batch=1, time=3, size=2, strongest=2.0)
    rest = {name: value for name, value in sample.items() if not isinstance(value, Tensor)}
    names = ("query", "value", "past_state", "decay", "beta")
    leaves = [sample[name].clone().requires_grad_() for name in names]

    def operator(query: Tensor, *others: Tensor) -> Any:
        return LINEAR_ATTENTION.torch_op(query, query, *others, **rest)

    assert torch.autograd.gradcheck(operator, leaves)
    assert torch.autograd.gradgradcheck(operator, leaves, fast_mode=True)


def test_the_standard_and_the_native_kernel_compute_the_samples(
    engine_of: Callable[..., Any], close: Callable[..., None]
) -> None:
    """The standard's body, inlined by ONNX Runtime, and `com.microsoft` against the loop."""
    for sample in LINEAR_ATTENTION.samples(torch.float32):
        exact = {n: x.double() if isinstance(x, Tensor) else x for n, x in sample.items()}
        wanted = LINEAR_ATTENTION.reference(**exact)
        for domain in ("", "com.microsoft"):
            for got, expected in zip(
                engine_of(LINEAR_ATTENTION, sample, domain, 27)(sample), wanted, strict=True
            ):
                close(got, expected, LINEAR_ATTENTION.tolerance[torch.float32])


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize(("rule", "per_key", "heads"), CASES)
def test_any_cut_of_time_is_bit_identical_on_onnx_runtime(
    rule: str,
    per_key: bool,
    heads: tuple[int, int],
    batch: int,
    engine_of: Callable[..., Any],
    cut_into: Callable[..., list[list[int]]],
) -> None:
    """Parts around the chunk, from a state that is not zero, a length that no chunk divides."""
    time = 2 * CHUNK + 2
    sample = draw(
        rule,
        per_key=per_key,
        heads=heads,
        batch=batch,
        time=time,
        size=8,
        strongest=5.0,
        dtype=torch.float32,
    )
    run = engine_of(LINEAR_ATTENTION, sample, "com.microsoft", 24)
    wanted, last = run(sample)
    for parts in cut_into(time, (1, 2, CHUNK - 1, CHUNK, CHUNK + 1, time)):
        state, done, outputs = sample["past_state"], 0, []
        for part in parts:
            given = {
                name: value[:, done : done + part] if isinstance(value, Tensor) else value
                for name, value in sample.items()
            }
            output, present = run({**given, "past_state": state})
            outputs.append(output)
            state, done = torch.from_numpy(present), done + part
        assert np.array_equal(np.concatenate(outputs, 1), wanted), parts
        assert np.array_equal(state.numpy(), last), parts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"update_rule": "gated"}, "beta"),
        ({"update_rule": "delta"}, "decay"),
        ({"update_rule": "linear_gated"}, "update_rule"),
        ({"q_num_heads": 3}, "q_num_heads|query"),
        ({"decay": None}, "decay"),
        ({"beta": None}, "beta"),
        ({"decay": torch.zeros(2, 9, 5)}, "decay"),
        ({"past_state": torch.zeros(2, 2, 4, 4)}, "past_state"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: Sample, message: str) -> None:
    """The error names the argument."""
    with pytest.raises(InputError, match=message):
        linear_attention(**{**draw("gated_delta"), **change})
