"""Time of operators: read from the engine's profile, given to modules, adding up."""

import json
from pathlib import Path
from typing import Any

import pytest

from intaglio.errors import ProfileError
from intaglio.runtime.graph import Graph, Node
from intaglio.runtime.profile_ops import ENGINE, Names, midmean, op_profile, read_trace


def node(name: str, op: str, module: str, output: str) -> Node:
    return Node(name=name, op=op, module=module, inputs=(), outputs=(output,), integers={})


NAMES = Names(
    Graph(
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
    assert NAMES.owner(name, op) == owner


def test_a_fused_node_belongs_to_the_module_whose_value_it_gives() -> None:
    """Even where it is named after nothing."""
    graph = Graph((node("add", "Add", "mlp", "sum"), node("norm", "Norm", "ln", "normed")), {})
    skip = Node(
        name="SkipLayerNormalization_token_1",
        op="SkipLayerNormalization",
        module="",
        inputs=(),
        outputs=("normed", "", "sum"),
        integers={},
    )

    assert Names(graph, Graph((skip,), {})).owner(skip.name, skip.op) == ("ln", True)


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
    """Scan keeps what its body leaves of its time; nodes and overhead add up to the call."""
    found = op_profile("step", 7, [CALL], NAMES)

    assert {op.node: op.milliseconds for op in found.ops} == pytest.approx(
        {"node_silu": 0.010, "inner": 0.010, "node_scan": 0.010}
    )
    assert found.kernels == pytest.approx(0.030)
    assert found.engine == pytest.approx(0.040)
    assert (found.kind, found.tokens) == ("step", 7)


def test_the_arena_is_told_by_its_largest_size() -> None:
    found = op_profile("step", 7, [CALL], NAMES)

    assert (found.arena_held, found.arena_used) == (3000, 900)
    assert op_profile("step", 7, [[run(0, 1)]], NAMES).arena_held is None


def test_modules_and_operators_are_sums_of_their_nodes() -> None:
    found = op_profile("step", 7, [CALL], NAMES)

    assert dict(found.by_module()) == pytest.approx(
        {"layers.0.mlp": 0.010, ENGINE: 0.010, "mixer": 0.010}
    )
    assert sum(ms for _, _, ms in found.by_op()) == pytest.approx(found.kernels)
    assert {(op, nodes) for op, nodes, _ in found.by_op()} == {("Mul", 2), ("Scan", 1)}


def test_an_interruption_of_one_call_makes_no_node_slow() -> None:
    slow = [event("node_silu", 0, 5010), *CALL[1:-1], run(0, 5040)]
    found = op_profile("step", 7, [slow, *[CALL] * 7], NAMES)

    assert found.ops[0].milliseconds == pytest.approx(0.010)
    assert found.engine == pytest.approx(0.040)


def test_the_middle_mean_leaves_both_ends_out() -> None:
    assert midmean([100, 1, 2, 3]) == 2.5
    assert midmean([4]) == 4


def test_a_trace_is_cut_at_the_calls(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    start = {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 9, "tid": 1}
    path.write_text(json.dumps([start, *CALL, *CALL]))
    calls = read_trace(path)

    assert [len(call) for call in calls] == [5, 5]
    assert [call[-1]["name"] for call in calls] == ["model_run", "model_run"]


@pytest.mark.parametrize("content", ["", "[1, 2]", '[{"cat": "Node"}]', "{}"])
def test_a_trace_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "trace.json").write_text(content)
    if content == "{}":
        assert read_trace(tmp_path / "trace.json") == []
        return
    with pytest.raises(ProfileError, match="--no-ops"):
        read_trace(tmp_path / "trace.json")
