"""Calls of one kind summarized: times of operators and modules, and what their work bounds."""

from dataclasses import replace

import pytest

from intaglio.runtime.onnx_graph import Node, OnnxGraph, Value
from intaglio.runtime.op_trace import EngineCall, Trace, TracedOp
from intaglio.runtime.profile.ops import OpProfile, midmean, op_profile
from intaglio.runtime.work import Ceilings, NodeWork, Works

OPS = [
    TracedOp(node="a", op="Mul", module="mlp", nodes=("a",)),
    TracedOp(node="b", op="Mul", module="mlp", fused=True),
    TracedOp(node="c", op="MatMul", module="head", nodes=("c",)),
]
VALUES = {"x": Value(32, ("batch", 100)), "w": Value(32, (100, 50)), "y": Value(32, ("batch", 50))}


def graph() -> OnnxGraph:
    def node(name: str, op: str, *inputs: str) -> Node:
        return Node(name=name, op=op, module="", inputs=inputs, outputs=("y",), integers={})

    return OnnxGraph((node("a", "Mul", "y", "y"), node("c", "MatMul", "x", "w")), {}, VALUES)


def profiled(calls: list[EngineCall], ceilings: Ceilings | None = None) -> OpProfile:
    return op_profile("step", 7, OPS, calls, Works(graph(), {"batch": 2}), ceilings)


CALL = EngineCall(times={0: 1.0, 1: 2.0, 2: 4.0}, total=10.0, arena_held=30, arena_used=20)


def test_operators_and_modules_are_sums_of_what_ran() -> None:
    found = profiled([CALL, EngineCall(times=CALL.times, total=10.0, arena_held=50)])

    assert (found.kind, found.tokens, found.calls) == ("step", 7, 2)
    assert (found.kernels, found.overhead, found.engine) == (7.0, 3.0, 10.0)
    assert found.by_module() == [("head", 4.0), ("mlp", 3.0)]
    assert [(each.op, each.nodes, each.milliseconds) for each in found.by_op()] == [
        *(("MatMul", 1, 4.0), ("Mul", 2, 3.0)),
    ]
    assert (found.arena_held, found.arena_used) == (50, 20)


def test_an_interruption_of_one_call_makes_no_node_slow() -> None:
    slow = EngineCall(times={**CALL.times, 0: 5000.0}, total=5009.0)
    found = profiled([slow, *[CALL] * 7])

    assert (found.ops[0].milliseconds, found.engine) == (1.0, 10.0)


def test_rates_are_work_by_time_where_all_of_it_is_known() -> None:
    """An operator one of whose nodes has unknown sizes has no rate."""
    product, elementwise = profiled([CALL]).by_op()
    size = 4 * (2 * 100 + 100 * 50 + 2 * 50)

    assert product.work == NodeWork(size, 2 * 2 * 100 * 50)
    assert product.bandwidth == pytest.approx(size / 4e-3)
    assert product.throughput == pytest.approx(20_000 / 4e-3)
    assert (elementwise.work, elementwise.bandwidth) == (None, None)


def test_what_the_engine_tells_of_its_own_nodes_is_their_work() -> None:
    """Of the graph's nodes, the graph tells it; one that moves nothing is told from an unknown."""
    told = {0: NodeWork(1, 1), 1: NodeWork(100, 0)}
    found = profiled([replace(CALL, works=told)])
    product, elementwise = found.by_op()

    assert elementwise.work == NodeWork(100, 100)  # `a` reads what it writes
    assert product.work == profiled([CALL]).by_op()[0].work
    free = replace(elementwise, work=NodeWork(0, 0))
    assert found.cells(free) == ["-", "-"]


def test_the_roofline_is_the_longer_of_moving_and_computing() -> None:
    """21,200 bytes and 20,000 operations: by the memory, or by the products, whichever is slow."""
    for memory, products, least in ((21.2e6, 1e9, 1.0), (1e9, 10e6, 2.0)):
        ceilings = Ceilings(bytes=memory, operations={"float16": products}, device="a GPU")
        found = profiled([CALL], ceilings)
        product, elementwise = found.by_op()

        assert found.reached(product.milliseconds, product.work) == pytest.approx(least / 4)
        assert found.columns == ["GB/s", "Gop/s", "of roofline"]
        assert found.cells(product)[2] == f"{least / 4:.0%}"
        assert found.cells(elementwise) == ["?", "?", "?"]
        assert found.to_json()["by_op"][0]["of_roofline"] == pytest.approx(least / 4)
    assert profiled([CALL]).columns == ["GB/s", "Gop/s"]


def test_the_middle_mean_leaves_both_ends_out() -> None:
    assert midmean([100, 1, 2, 3]) == 2.5
    assert midmean([4]) == 4


def test_a_trace_survives_its_way_between_processes() -> None:
    trace = Trace(ops=OPS, calls=[replace(CALL, works={1: NodeWork(3, 4, "int8")})])

    assert Trace.from_json(trace.to_json()) == trace
