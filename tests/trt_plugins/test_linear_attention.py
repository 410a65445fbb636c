"""LinearAttention's kernels equal the operator in float64: all rules, both ways, uneven sizes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from intaglio.errors import UnsupportedError
from intaglio.ops.op import Sample
from intaglio.trt_plugins.launch_torch import describe, run
from intaglio.trt_plugins.linear_attention import PLUGIN, kernels
from intaglio.trt_plugins.plugin import Input, Request

Check = Callable[..., None]


def draw(
    rule: str,
    time: int,
    heads: tuple[int, int] = (2, 2),
    size: tuple[int, int] = (32, 32),
    *,
    batch: int = 1,
    per_key: bool = False,
    steep: float = 3.0,
    dtype: torch.dtype = torch.float32,
) -> Sample:
    """Random arguments; `steep` scales what decays are drawn from."""
    generator = torch.Generator().manual_seed(0)
    (q_heads, kv_heads), (K, V) = heads, size

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sample: Sample = {
        "query": normal(batch, time, q_heads * K).to(dtype),
        "key": F.normalize(normal(batch, time, kv_heads, K), dim=-1).flatten(2).to(dtype),
        "value": normal(batch, time, kv_heads * V).to(dtype),
        "past_state": normal(batch, kv_heads, K, V).float(),
        "update_rule": rule,
        "q_num_heads": q_heads,
        "kv_num_heads": kv_heads,
    }
    if "gated" in rule:
        width = kv_heads * (K if per_key else 1)
        sample["decay"] = F.logsigmoid(steep * normal(batch, time, width)).to(dtype)
    if "delta" in rule:
        sample["beta"] = normal(batch, time, kv_heads).sigmoid().to(dtype)
    return sample


def test_the_samples_of_the_operator(check: Check) -> None:
    """Heads smaller than any tile, with and without a state, one rate for each head."""
    for sample in PLUGIN.op.samples(torch.float32):
        check(PLUGIN, sample)


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
@pytest.mark.parametrize("time", [0, 1, 70])
def test_every_rule_for_any_length(check: Check, rule: str, time: int) -> None:
    """Both ways, though each is meant for some lengths; heads that no tile divides, grouped."""
    check(PLUGIN, draw(rule, time, heads=(4, 2), size=(40, 48), batch=2))


@pytest.mark.parametrize("rule", ["gated", "gated_delta"])
@pytest.mark.parametrize("time", [1, 70])
def test_decay_per_key(check: Check, rule: str, time: int) -> None:
    """A decay of each key."""
    check(PLUGIN, draw(rule, time, heads=(2, 1), size=(48, 33), per_key=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", ["gated", "gated_delta"])
def test_half_precision(check: Check, rule: str, dtype: torch.dtype) -> None:
    """Activations of 16 bits; the state stays in fp32."""
    check(PLUGIN, draw(rule, 66, size=(64, 32), dtype=dtype))


@pytest.mark.parametrize("size", [(256, 256), (128, 200)])
def test_wide_heads(check: Check, size: tuple[int, int]) -> None:
    """The widest heads there are."""
    check(PLUGIN, draw("gated_delta", 20, heads=(1, 1), size=size))


@pytest.mark.parametrize("per_key", [False, True])
def test_decays_that_forget_everything_stay_finite(per_key: bool) -> None:
    """e^{-G} of a chunk would be infinite; no exponent is above 0."""
    sample = draw("gated_delta", 66, per_key=per_key, steep=200.0)
    tensors = {name: x for name, x in sample.items() if isinstance(x, Tensor)}
    attributes = PLUGIN.op.attributes(sample)
    inputs = {name: describe(x) for name, x in tensors.items()}
    found = run(
        kernels(Request(attributes=attributes, inputs=inputs, sm=90)),
        [tensors.get(name) for name in PLUGIN.inputs],
    )
    for got, wanted in zip(found, PLUGIN.op.reference(**sample), strict=True):
        assert torch.isfinite(got).all()
        assert (got - wanted).abs().amax() <= 1e-4 * wanted.abs().amax()


def test_keys_that_are_all_alike(check: Check) -> None:
    """Powers of M reach 1e18 here; substitution does not form them."""
    sample = draw("delta", 64, size=(32, 32))
    sample["key"] = sample["key"][:, :1].expand_as(sample["key"]).contiguous()
    sample["beta"] = torch.ones_like(sample["beta"])
    check(PLUGIN, sample)


def test_a_state_of_half_precision_and_one_rate_for_all_heads(check: Check) -> None:
    """bf16 state halves the traffic of a step; it is rounded once a call."""
    sample = draw("gated_delta", 3, size=(32, 32), dtype=torch.bfloat16)
    sample["beta"] = sample["beta"][..., :1].contiguous()
    check(PLUGIN, sample)


def test_parts_equal_the_whole() -> None:
    """The state that a call leaves is where the next goes on."""
    sample = draw("gated_delta", 40)
    tensors = {name: x for name, x in sample.items() if isinstance(x, Tensor)}
    attributes = PLUGIN.op.attributes(sample)
    inputs = {name: describe(x) for name, x in tensors.items()}
    made = kernels(Request(attributes=attributes, inputs=inputs, sm=90))

    def call(part: slice, state: Tensor) -> tuple[Tensor, ...]:
        cut = {n: x[:, part].contiguous() for n, x in tensors.items()} | {"past_state": state}
        return run(made, [cut.get(name) for name in PLUGIN.inputs])

    whole, end = call(slice(None), tensors["past_state"])
    first, state = call(slice(25), tensors["past_state"])
    second, last = call(slice(25, 40), state)
    assert (torch.cat([first, second], 1) - whole).abs().amax() <= 1e-5 * whole.abs().amax()
    assert (last - end).abs().amax() <= 1e-5 * end.abs().amax()


def test_what_no_kernel_fits_is_told() -> None:
    """Heads beyond a program, and sizes or dtypes that kernels need to know."""
    rows = {
        "query": Input("float16", (None, None, 512)),
        "key": Input("float16", (None, None, 512)),
        "value": Input("float16", (None, None, 64)),
    }

    def ask(**changed: Input) -> None:
        attributes = {"update_rule": "linear", "q_num_heads": 1, "kv_num_heads": 1}
        kernels(Request(attributes=attributes, inputs={**rows, **changed}, sm=90))

    with pytest.raises(UnsupportedError, match="heads of 512 keys and 64 values; at most 256"):
        ask()
    with pytest.raises(UnsupportedError, match="query: axis -1 is dynamic"):
        ask(query=Input("float16", (None, None, None)))
    with pytest.raises(UnsupportedError, match="query is float64"):
        ask(query=Input("float64", (1, 1, 64)))
