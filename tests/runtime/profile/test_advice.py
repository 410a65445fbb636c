"""Advice is given where the figures show what a known choice would save, and nowhere else."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from intaglio.runtime.profile.advice import advice
from intaglio.runtime.profile.ops import OpProfile, OpTime
from intaglio.runtime.profile.report import Contender, Latencies, Phase
from intaglio.runtime.work import Ceilings, NodeWork
from intaglio.state import Layout, StateSpec

CEILINGS = Ceilings(bytes=10e9, operations={"float32": 1e12}, device="a processor")


def measured(
    times: Mapping[str, float],
    layouts: Sequence[Layout] = (),
    *,
    capacity: int | None = None,
    bits: float | None = None,
    work: NodeWork | None = None,
) -> Contender:
    """Steps at 100 tokens, whose operators take so many milliseconds."""
    ops = OpProfile(
        kind="step",
        tokens=100,
        calls=1,
        ops=[
            OpTime(node=op, op=op, module="", milliseconds=ms, work=work)
            for op, ms in times.items()
        ],
        overhead=0.0,
        arena_held=None,
        arena_used=None,
        ceilings=CEILINGS,
    )
    timing = Latencies(phase=Phase("step", 100), batch=1, rounds=[[0.01]], capacity=capacity)
    states = [
        StateSpec(
            input=f"past.{place}", output=f"present.{place}", dtype="float32", shape=("batch", 4),
            layout=layout, axis=1, op="o", port="key", module="m", layer=0, call=place,
        )
        for place, layout in enumerate(layouts)
    ]  # fmt: skip
    return Contender(
        name="mine", kind="bundle", load_seconds=0.0, weights=0, bits=bits,
        timings=[timing], ops=[ops], states=states,
    )  # fmt: skip


@pytest.mark.parametrize(("capacity", "said"), [(256, True), (152, True), (151, False)])
def test_caches_with_much_room_are_read_whole(capacity: int, *, said: bool) -> None:
    times = {"Attention": 4.0, "MatMul": 6.0}
    found = advice([measured(times, [Layout.STATIC], capacity=capacity)])

    assert bool(found) is said
    assert all(
        "mine: Attention takes 40% of a step at 100" in each and "--capacity 101" in each
        for each in found
    )
    assert not advice([measured(times, [Layout.RECURRENT], capacity=capacity)])
    assert not advice([measured({"Attention": 1.0, "MatMul": 9.0}, [Layout.STATIC], capacity=256)])
    assert not advice([measured({"GroupQueryAttention": 9.0}, [Layout.STATIC], capacity=256)])


def test_caches_that_grow_are_copied_for_each_token() -> None:
    """By a Concat, or within Attention."""
    (said,) = advice([measured({"Concat": 1.5, "Attention": 1.5, "MatMul": 7.0}, [Layout.GROW])])

    assert "--kv static" in said
    assert not advice([measured({"Concat": 3.0, "MatMul": 7.0}, [Layout.RECURRENT])])
    assert not advice([measured({"Concat": 2.0, "MatMul": 8.0}, [Layout.GROW])])


@pytest.mark.parametrize(("size", "bits", "said"), [
    (60e6, 32.0, True),  # 60 MB in 10 ms: 6 of 10 GB/s
    (40e6, 32.0, False),
    (60e6, 4.5, False),
    (60e6, None, False),
])  # fmt: skip
def test_products_that_wait_for_wide_weights(
    size: float, bits: float | None, *, said: bool
) -> None:
    entry = measured({"MatMul": 10.0}, bits=bits, work=NodeWork(int(size), 1))

    assert bool(advice([entry])) is said
    assert not advice([replace(entry, ops=[replace(entry.ops[0], ceilings=None)])])
