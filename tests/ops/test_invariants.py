"""What holds of every operator that carries a state, and of every rule of it, whatever the data."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from intaglio.ops import OPS
from intaglio.ops._linear_attention_check import RULES
from intaglio.ops.diagonal_ssm import DISCRETIZATIONS
from intaglio.ops.op import Op, Sample
from intaglio.ops.rnn import MODES

BY_NAME = {op.name: op for op in OPS}
LONG = 4096
KEYS = {"diagonal_ssm": "N", "dplr_delta_rule": "K", "linear_attention": "K"}  # sizes of keys
IDLE = {  # tokens that leave a state as it is
    "diagonal_ssm": ("input", "delta"),
    "dplr_delta_rule": ("key", "b", "decay"),
    "linear_attention": ("key", "decay", "beta"),
}
# Of which the same is not to be shown: entries of states that are channels or mix with each other,
# states that go on with every token, and windows, that forget all at once.
KEYLESS = {"causal_conv_with_state", "piecewise_linear_rnn", "rnn"}
NEVER_IDLE = KEYLESS
DECAYLESS = {"causal_conv_with_state"}
Case = Callable[[int, torch.dtype, float], Sample]


def given(op: Op, sample: Sample) -> dict[str, Tensor]:
    """The tensors of a sample."""
    return {name: sample[name] for name in op.inputs if isinstance(sample.get(name), Tensor)}


def samples(names: Collection[str], needed: Collection[str] = ()) -> list[Any]:
    """Those of each operator that have what is needed, in float64."""
    return [
        pytest.param(BY_NAME[name], sample, id=f"{name}-{index}")
        for name in names
        for index, sample in enumerate(BY_NAME[name].samples(torch.float64))
        if all(each in sample or each not in BY_NAME[name].inputs for each in needed)
    ]


def axes(op: Op, sample: Sample, name: str, size: str) -> list[tuple[int, int]]:
    """The axes of `name` that `size` is in, and how many of it lie behind each other there."""
    attributes = dict(op.attributes(sample))
    shapes = {each: tuple(x.shape) for each, x in given(op, sample).items()}
    known = op.signature.bind(shapes, attributes)
    found = []
    rank = len(shapes.get(name, ())) or 3
    for terms in op.signature.formal(name).shapes(attributes):
        for axis, term in enumerate(terms):
            length = shapes[name][axis] if name in shapes and len(terms) == rank else None
            if size in term.split("*") and length in (None, _product(term, known)):
                found.append((axis, known[size]))
    return found


def _product(term: str, known: dict[str, int]) -> int:
    return int(np.prod([known[factor] for factor in term.split("*")]))


def permuted(x: Tensor, places: list[tuple[int, int]]) -> Tensor:
    """`x` with what lies along these axes turned round, head by head."""
    for axis, size in places:
        x = torch.unflatten(x, axis, (-1, size)).flip(axis + 1).flatten(axis, axis + 1)
    return x


@pytest.mark.parametrize(
    ("op", "sample"), samples([op.name for op in OPS if op.signature.recurrent])
)
def test_rows_know_nothing_of_each_other(op: Op, sample: Sample) -> None:
    """A row alone is what it is among others."""
    own = given(op, sample)
    rows = {n for n in own if (op.signature.formal(n).dims or "").startswith("batch")}
    if op.name == "diagonal_ssm" and sample["lti"]:
        rows -= {"B", "C"}
    alone = sample | {name: own[name][-1:] for name in rows}
    for one, among in zip(op.forward(**alone), op.forward(**sample), strict=True):
        torch.testing.assert_close(one, among[-1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("op", "sample"), samples(KEYS))
def test_the_order_of_keys_is_nobodys_business(op: Op, sample: Sample) -> None:
    """Turned round in every input, they are turned round in the state, and nothing else is."""
    size = KEYS[op.name]
    turned = {n: permuted(x, axes(op, sample, n, size)) for n, x in given(op, sample).items()}
    output, state = op.forward(**sample)
    found, after = op.forward(**sample | turned)
    past = [(x.dims or "").split() for x in op.signature.inputs if x.name == "past_state"]
    at = past[0].index(size)

    assert any(not torch.equal(x, sample[n]) for n, x in turned.items())
    torch.testing.assert_close(found, output, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(after, state.flip(at), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("op", "sample"), samples(IDLE, ("past_state", "delta")))
def test_a_token_that_writes_and_forgets_nothing_leaves_the_state(op: Op, sample: Sample) -> None:
    """To the last bit: that is how rows are padded, and memories left alone that are not picked."""
    idle = {name: torch.zeros_like(sample[name]) for name in IDLE[op.name] if name in sample}
    for compute in (op.forward, op.reference):
        assert torch.equal(compute(**sample | idle)[1], sample["past_state"])


def attention(rule: str, *, per_key: bool = False) -> Case:
    """Linear attention of a rule, rates up to 2 and decays down to `steep` or all of it."""

    def make(time: int, dtype: torch.dtype, steep: float) -> Sample:
        normal = drawing(time)
        heads, K, V = 2, 4, 3
        made = {
            "query": normal(1, time, heads * K),
            "key": F.normalize(normal(1, time, heads, K), dim=-1).flatten(2),
            "value": normal(1, time, heads * V),
        }
        if "gated" in rule:
            made["decay"] = decays(normal, steep, (1, time, heads * (K if per_key else 1)))
        if "delta" in rule:
            made["beta"] = 2 * normal(1, time, heads).sigmoid()
        made = {name: x.to(dtype) for name, x in made.items()}
        heads_of = {"q_num_heads": heads, "kv_num_heads": heads}
        return made | {"update_rule": rule} | heads_of

    return make


def selective(discretization: str) -> Case:
    """Mamba's, and one whose steps do not scale what is written: decays down to `steep`."""

    def make(time: int, dtype: torch.dtype, steep: float) -> Sample:
        normal, kind = drawing(time), state_of(dtype)
        made = {name: normal(1, time, 4).to(dtype) for name in ("B", "C")}
        made |= {"input": normal(1, time, 3).to(dtype), "A": -torch.ones(3, 4, dtype=kind)}
        made["delta"] = -decays(normal, steep, (1, time, 3)).to(dtype)
        return made | {"discretization": discretization}

    return make


def piecewise(time: int, dtype: torch.dtype, steep: float) -> Sample:
    """AL-RNN's, with factors of its units down to e^steep."""
    normal, kind = drawing(time), state_of(dtype)
    made = {"drive": normal(1, time, 5).to(dtype), "W": (0.2 * normal(5, 5)).to(kind)}
    made |= {"A": decays(normal, steep, (1, 5))[0].exp().to(kind), "h": normal(5).to(kind)}
    return made | {"num_relu": 2}


def gates(mode: str) -> Case:
    """A layer of torch.nn, of whose gates every third is `steep` below what opens it half."""

    def make(time: int, dtype: torch.dtype, steep: float) -> Sample:
        normal, rows = drawing(time), 4 * {"LSTM": 4, "GRU": 3}.get(mode, 1)
        made = {"input": normal(1, time, 3), "weight_ih": 0.5 * normal(rows, 3)}
        made |= {"weight_hh": 0.3 * normal(rows, 4), "bias_hh": normal(rows)}
        made["bias_ih"] = torch.where(torch.arange(rows) % 3 == 0, steep, normal(rows))
        return {name: x.to(dtype) for name, x in made.items()} | {"mode": mode}

    return make


def low_rank(time: int, dtype: torch.dtype, steep: float) -> Sample:
    """RWKV-7's, with decays down to `steep`."""
    normal = drawing(time)
    unit = F.normalize(normal(1, time, 2, 4), dim=-1)
    made = {name: normal(1, time, 8) for name in ("query", "key", "value")}
    made |= {"a": -unit.flatten(2), "b": (unit * normal(1, time, 2, 4).sigmoid()).flatten(2)}
    made["decay"] = decays(normal, steep, (1, time, 8))
    return {name: x.to(dtype) for name, x in made.items()} | {"num_heads": 2}


def state_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states and of what goes into them alone."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def drawing(seed: int) -> Callable[..., Tensor]:
    """Normal numbers, the same each time."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def decays(normal: Callable[..., Tensor], steep: float, shape: tuple[int, ...]) -> Tensor:
    """Every third as steep as there is, the others anything above it."""
    share = normal(*shape).sigmoid()
    return torch.where(torch.arange(shape[1])[:, None] % 3 == 0, steep, steep * share)


CASES = {
    "linear": ("linear_attention", attention("linear")),  # two that forget nothing
    "delta": ("linear_attention", attention("delta")),
    "gated": ("linear_attention", attention("gated")),
    "gated per key": ("linear_attention", attention("gated", per_key=True)),
    "gated delta": ("linear_attention", attention("gated_delta")),
    "gated delta per key": ("linear_attention", attention("gated_delta", per_key=True)),
    "selective": ("diagonal_ssm", selective("mamba")),
    "plain steps": ("diagonal_ssm", selective("none")),
    "low rank": ("dplr_delta_rule", low_rank),
    "piecewise linear": ("piecewise_linear_rnn", piecewise),
    **{mode: ("rnn", gates(mode)) for mode in MODES},
}


def test_every_operator_and_every_rule_of_one_has_its_cases() -> None:
    """Whoever adds one finds here what it has to show, or says that there is nothing to it."""
    recurrent = {op.name for op in OPS if op.signature.recurrent}
    made = {case: make(1, torch.float32, -1.0) for case, (_, make) in CASES.items()}

    def shown(name: str, attribute: str) -> set[Any]:
        return {made[case][attribute] for case, (of, _) in CASES.items() if of == name}

    assert KEYS.keys() | KEYLESS == recurrent
    assert IDLE.keys() | NEVER_IDLE == recurrent
    assert {name for name, _ in CASES.values()} | DECAYLESS == recurrent
    assert shown("linear_attention", "update_rule") == set(RULES)
    assert shown("diagonal_ssm", "discretization") == set(DISCRETIZATIONS)
    assert shown("rnn", "mode") == set(MODES)


@pytest.mark.parametrize("case", CASES)
def test_decays_of_e_to_the_minus_30_overflow_nowhere(
    case: str, engine_of: Any, own_engine_of: Any, close: Callable[..., None]
) -> None:
    """Over 4,096 tokens, in chunks and in ONNX Runtime, against the loop in float64."""
    name, make = CASES[case]
    op = BY_NAME[name]
    exact = op.reference(**make(LONG, torch.float64, -30.0))
    chunks = op.forward(**make(LONG, torch.float64, -30.0))
    single = make(LONG, torch.float32, -30.0)
    engine = (
        own_engine_of(op, single, 24) if op.domain else (engine_of(op, single, "com.microsoft", 24))
    )
    results = {"chunks": (chunks, 1e-12), "engine": (engine(single), 1e-5)}
    results["chunks in float32"] = (op.forward(**single), 1e-5)
    for found, limit in results.values():
        for got, wanted in zip(found, exact, strict=True):
            close(got, wanted, limit)


@pytest.mark.parametrize(
    ("case", "limit"),
    [
        ("gated", 5e-6),
        ("gated delta per key", 5e-6),
        ("low rank", 5e-6),
        # These take decays one by one, each e^-1e-4 to the rounding of a number of 1.
        ("selective", 3e-4),
        ("plain steps", 3e-4),
    ],
)
def test_a_long_memory_does_not_drift(case: str, limit: float, close: Callable[..., None]) -> None:
    """100,000 tokens of a decay that keeps 10,000 of them, in single precision."""
    name, make = CASES[case]
    op, slow = BY_NAME[name], -1e-4
    exact = op.forward(**make(100_000, torch.float64, slow))
    for got, wanted in zip(op.forward(**make(100_000, torch.float32, slow)), exact, strict=True):
        close(got, wanted, limit)
