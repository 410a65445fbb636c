"""Time of nodes: read from the profile of ONNX Runtime, given to modules, adding up."""

import json
from pathlib import Path
from typing import Any

import pytest

from intaglio.errors import ProfileError
from intaglio.runtime.onnx_graph import Node, OnnxGraph
from intaglio.runtime.ort.ort_tracer import ENGINE, Names, read_events, trace_of


def node(name: str, op: str, module: str, output: str) -> Node:
    return Node(name=name, op=op, module=module, inputs=(), outputs=(output,), integers={})


NAMES = Names(
    OnnxGraph(
        (
            node("node_silu", "Mul", "layers.0.mlp", "silu"),
            node("node_silu_3", "Mul", "layers.3.mlp", "silu_3"),
            node("node_scan", "Scan", "mixer", "scan"),
            node("node_attn", "com.microsoft::Attention", "layers.1.attn", "attn"),
        ),
        {},
    )
)


@pytest.mark.parametrize(
    ("name", "op", "owner"),
    [
        ("node_silu_3", "Mul", ("layers.3.mlp", False)),
        ("node_attn", "Attention", ("layers.1.attn", False)),
        ("node_silu_3", "FusedMul", ("layers.3.mlp", True)),
        ("node_silu_3/QuickGeluFusion/", "QuickGelu", ("layers.3.mlp", True)),
        ("node_silu/QuickGeluFusion/", "QuickGelu", ("layers.0.mlp", True)),
        ("InsertedPrecisionFreeCast_silu_3", "Cast", ("layers.3.mlp", True)),
        ("ReorderOutput(silu)", "ReorderOutput", ("layers.0.mlp", True)),
        ("node_silu_37", "Mul", ("layers.0.mlp", True)),
        ("node_silent", "Mul", (ENGINE, True)),
        ("Transpose_12", "Transpose", (ENGINE, True)),
        ("", "Mul", (ENGINE, True)),
    ],
)
def test_a_node_of_the_engine_belongs_to_the_module_it_is_named_after(
    name: str, op: str, owner: tuple[str, bool]
) -> None:
    """By its own name, by that of the node it was fused from, or by a value; else to nobody."""
    found = NAMES.traced(name, op)

    assert (found.module, found.fused) == owner
    assert found.nodes == (() if found.fused else (name,))


def test_a_fused_node_belongs_to_the_module_whose_value_it_gives() -> None:
    """Even where it is named after nothing."""
    graph = OnnxGraph((node("add", "Add", "mlp", "sum"), node("norm", "Norm", "ln", "normed")), {})
    skip = Node(
        name="SkipLayerNormalization_token_1",
        op="SkipLayerNormalization",
        module="",
        inputs=(),
        outputs=("normed", "", "sum"),
        integers={},
    )

    found = Names(graph, OnnxGraph((skip,), {})).traced(skip.name, skip.op)

    assert (found.module, found.fused) == ("ln", True)


def test_a_node_named_after_nothing_works_for_the_nearest_that_reads_it() -> None:
    """Through others of its kind; the last one, which nobody reads, for what it reads from."""

    def made(name: str, takes: str, gives: str) -> Node:
        return Node(name=name, op="X", module="", inputs=(takes,), outputs=(gives,), integers={})

    graph = OnnxGraph((node("add", "Add", "mlp", "sum"), node("neg", "Neg", "head", "y")), {})
    chain = (made("a", "x", "1"), made("b", "1", "2"), made("neg", "2", "y"), made("c", "y", "3"))
    names = Names(graph, OnnxGraph((*chain, made("alone", "u", "v")), {}))

    assert [names.traced(name, "X").module for name in ("a", "b", "c")] == ["head"] * 3
    assert names.traced("alone", "X").module == ENGINE


def event(name: str, start: int, duration: int, op: str = "Mul", **memory: int) -> dict[str, Any]:
    arguments = {"op_name": op, **{key: str(value) for key, value in memory.items()}}
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": start,
        "dur": duration,
        "tid": 1,
        "args": arguments,
    }


def run(start: int, duration: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": duration, "tid": 1}


CALL = [
    event("node_silu", 0, 10, mem_arena_held=1000, mem_in_use_peak=700),
    event("inner", 12, 5),
    event("inner", 18, 5),
    event("node_scan", 11, 20, "Scan", mem_arena_held=3000, mem_in_use_peak=900),
    run(0, 40),
]


def test_a_body_is_not_counted_twice() -> None:
    """Scan keeps what its body leaves of its time; a node that runs twice is counted as one."""
    found = trace_of([CALL], NAMES)
    (call,) = found.calls

    assert {found.ops[place].node: time for place, time in call.times.items()} == pytest.approx(
        {"node_silu": 0.010, "inner": 0.010, "node_scan": 0.010}
    )
    assert call.total == pytest.approx(0.040)


def test_the_arena_is_told_by_its_largest_size() -> None:
    told, untold = trace_of([CALL, [run(0, 1)]], NAMES).calls

    assert (told.arena_held, told.arena_used) == (3000, 900)
    assert (untold.arena_held, untold.arena_used) == (None, None)


def test_calls_share_the_operators_that_they_run() -> None:
    found = trace_of([CALL, CALL[:1] + CALL[-1:], CALL], NAMES)

    assert [(op.node, op.op) for op in found.ops] == [
        *(("node_silu", "Mul"), ("node_scan", "Scan"), ("inner", "Mul")),
    ]
    assert [sorted(call.times) for call in found.calls] == [[0, 1, 2], [0], [0, 1, 2]]


def test_a_trace_is_cut_at_the_calls(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    start = {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 9, "tid": 1}
    path.write_text(json.dumps([start, *CALL, *CALL]))
    calls = read_events(path)

    assert [len(call) for call in calls] == [5, 5]
    assert [call[-1]["name"] for call in calls] == ["model_run", "model_run"]


@pytest.mark.parametrize("content", ["", "[1, 2]", '[{"cat": "Node"}]', "{}"])
def test_a_trace_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "trace.json").write_text(content)
    if content == "{}":
        assert read_events(tmp_path / "trace.json") == []
        return
    with pytest.raises(ProfileError, match="--no-ops"):
        read_events(tmp_path / "trace.json")
