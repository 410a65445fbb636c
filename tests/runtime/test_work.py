"""What nodes have to do: bytes that cross the memory, operations, at the sizes of a call."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from intaglio.exporter.export import export
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.onnx_graph import OnnxGraph, parse_graph, read_graph
from intaglio.runtime.work import NodeWork, Works

SIZES = {"batch": 2, "time": 3, "past": 5, "capacity": 64}
FLOAT, HALF, LONG = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def graph(
    nodes: list[Any],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    inner: dict[str, tuple[int, list[Any]]] | None = None,
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
) -> OnnxGraph:
    def infos(values: dict[str, tuple[int, list[Any]]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in values.items()
        ]

    made = helper.make_graph(
        nodes,
        "g",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
        value_info=infos(inner or {}),
    )
    return parse_graph(helper.make_model(made).SerializeToString())


def node(op: str, inputs: str, outputs: str = "y", domain: str = "", **attributes: Any) -> Any:
    gives = outputs.split()
    name = f"node_{gives[0]}"
    return helper.make_node(op, inputs.split(), gives, name=name, domain=domain, **attributes)


def work(made: OnnxGraph, *names: str) -> NodeWork | None:
    return Works(made, SIZES).of(names)


def test_dimensions_are_terms_of_what_a_call_gives() -> None:
    """Symbols, sums and products of them; what else stands there is unknown, never 0."""
    for dim, size in (
        *(("batch", 2), ("batch*time", 6), ("past + time", 8), ("4*time - 1", 11), (7, 7)),
        *(("time//2", 1), ("sequence", None), ("", None), ("time;", None), ("f(time)", None)),
    ):
        made = graph([node("Mul", "x x")], {"x": (FLOAT, [dim])}, {"y": (FLOAT, [dim])})

        found = work(made, "node_y")
        assert found == (None if size is None else NodeWork(2 * 4 * size, size)), dim


def test_a_product_reads_its_weight_once() -> None:
    """In the bytes that it is stored in."""
    weight = np.zeros((8, 5), np.float16)
    made = graph(
        [node("MatMul", "x w")],
        {"x": (HALF, ["batch", "time", 8])},
        {"y": (HALF, ["batch", "time", 5])},
        weights={"w": weight},
    )

    assert work(made, "node_y") == NodeWork(2 * (6 * 8 + 8 * 5 + 6 * 5), 2 * 6 * 8 * 5)


def test_what_runs_as_one_moves_only_what_crosses_its_border() -> None:
    """A value between two nodes counts for neither, unless somebody else reads it."""
    nodes = [node("Mul", "x x", "a"), node("Add", "a x", "b"), node("Neg", "a", "c")]
    shape = (FLOAT, [10])
    made = graph(nodes, {"x": shape}, {"b": shape, "c": shape}, {"a": shape})

    assert work(made, "node_a", "node_b") == NodeWork(40 * 3, 20)  # x, b, and a for the third
    assert work(made, "node_a", "node_b", "node_c") == NodeWork(40 * 3, 30)  # x, b, c
    assert work(made, "node_b") == NodeWork(40 * 3, 10)


def test_a_view_within_a_border_is_no_traffic() -> None:
    """What is computed is read through it by a neighbour, or leaves through it."""
    shape = (FLOAT, [10])
    nodes = [node("Neg", "x", "a"), node("Reshape", "a s", "b"), node("Abs", "b", "c")]
    wide, size = (FLOAT, [2, 5]), (LONG, [2])
    made = graph(nodes, {"x": shape, "s": size}, {"c": wide}, {"a": shape, "b": wide})

    assert work(made, "node_a", "node_b", "node_c") == NodeWork(40 * 2, 20)
    assert work(made, "node_a", "node_b") == NodeWork(40 * 2, 10)
    assert work(made, "node_b", "node_c") == NodeWork(40 * 2, 10)


def test_a_look_up_reads_the_rows_that_it_gives() -> None:
    table = np.zeros((1000, 16), np.float32)
    made = graph(
        [node("Gather", "w i")],
        {"i": (LONG, ["batch", "time"])},
        {"y": (FLOAT, ["batch", "time", 16])},
        weights={"w": table},
    )

    assert work(made, "node_y") == NodeWork(6 * 8 + 2 * 6 * 16 * 4, 0)


def test_views_cost_nothing_and_copies_only_move() -> None:
    shape = (FLOAT, [4, 6])
    made = graph(
        [node("Reshape", "x s"), node("Transpose", "x", "z")],
        {"x": shape, "s": (LONG, [2])},
        {"y": (FLOAT, [24]), "z": (FLOAT, [6, 4])},
    )

    assert work(made, "node_y") == NodeWork(0, 0)
    assert work(made, "node_z") == NodeWork(2 * 24 * 4, 0)


def test_attention_meets_every_key() -> None:
    """Scores and values: two products of every query with as many keys as there are."""
    made = graph(
        [node("Attention", "q k v", "y")],
        {
            name: (FLOAT, ["batch", 4, size, 8])
            for name, size in (("q", "time"), ("k", 9), ("v", 9))
        },
        {"y": (FLOAT, ["batch", 4, "time", 8])},
    )

    found = work(made, "node_y")
    assert found is not None
    assert found.operations == 2 * 2 * (2 * 4 * 3 * 8) * 9


def test_a_cache_in_place_counts_for_the_tokens_in_it() -> None:
    """Not for its room: 5 tokens are read, 3 written."""
    cache = (FLOAT, ["batch", 2, "capacity", 8])
    rows = (FLOAT, ["batch", "time", 16])
    made = graph(
        [
            node(
                *("GroupQueryAttention", "q k v pk pv", "y nk nv"),
                domain="com.microsoft",
                num_heads=2,
                kv_num_heads=2,
            )
        ],
        {"q": rows, "k": rows, "v": rows, "pk": cache, "pv": cache},
        {"y": rows, "nk": cache, "nv": cache},
    )
    token = 2 * 16 * 4  # bytes of both rows

    assert work(made, "node_y") == NodeWork(
        4 * 3 * token + 2 * 5 * token + 2 * 3 * token, 4 * 8 * 2 * 3 * 16
    )


def test_a_token_written_into_a_cache_moves_alone() -> None:
    made = graph(
        [node("TensorScatter", "c u p")],
        {"c": (FLOAT, [2, 64, 4]), "u": (FLOAT, [2, "time", 4]), "p": (LONG, [2])},
        {"y": (FLOAT, [2, 64, 4])},
    )

    assert work(made, "node_y") == NodeWork(2 * 2 * 3 * 4 * 4 + 16, 0)


@pytest.mark.parametrize(("given", "each"), [("q k v s", 4), ("q k v s g", 5), ("q k v s g b", 7)])
def test_a_recurrence_goes_over_its_state_once_a_token(given: str, each: int) -> None:
    """An outer product and a query; a decay costs one more operation, a delta rule two."""
    state, rows = (FLOAT, ["batch", 2, 8, 16]), (FLOAT, ["batch", "time", 16])
    names = dict.fromkeys(given.split(), rows)
    made = graph(
        [node("LinearAttention", given, "y n")], {**names, "s": state}, {"y": rows, "n": state}
    )

    found = work(made, "node_y")
    assert found is not None
    assert found.operations == 3 * (2 * 2 * 8 * 16) * each


def test_a_node_of_a_body_has_no_work_here() -> None:
    """How often it runs is not in the graph; what holds it does nothing itself."""
    shape = (FLOAT, [4])
    body = helper.make_graph(
        [node("Mul", "x x", "inner")], "b", [], [helper.make_tensor_value_info("inner", FLOAT, [4])]
    )
    made = graph(
        [node("Loop", "m c", "y", body=body)],
        {"m": (TensorProto.INT64, []), "c": (TensorProto.BOOL, []), "x": shape},
        {"y": shape},
    )

    assert work(made, "node_inner") is None
    assert work(made, "node_y") == NodeWork(0, 0)


def test_a_node_of_a_branch_has_its_work() -> None:
    """It runs once, or not at all; what the branch gives leaves it."""
    shape = (FLOAT, [4])
    body = helper.make_graph(
        [node("Mul", "x x", "inner")], "b", [], [helper.make_tensor_value_info("inner", FLOAT, [4])]
    )
    made = graph(
        [node("If", "c", "y", then_branch=body, else_branch=body)],
        {"c": (TensorProto.BOOL, []), "x": shape},
        {"y": shape},
    )

    assert work(made, "node_inner") == NodeWork(2 * 16, 4)
    assert work(made, "node_y") == NodeWork(0, 0)


def test_nodes_that_nobody_knows_have_no_work() -> None:
    shape = (FLOAT, [4])
    made = graph([node("Mul", "x z")], {"x": shape}, {"y": shape})

    assert work(made) is None
    assert work(made, "another") is None
    assert work(made, "node_y") is None  # z has no type


def test_an_exported_graph_tells_the_sizes_of_all_nodes(
    hybrid_checkpoint: Path, tmp_path: Path
) -> None:
    export(hybrid_checkpoint, tmp_path / "bundle", targets=["ort"], verify=False)
    made = read_graph(Bundle.open(tmp_path / "bundle").graph(), "ort")
    works = Works(made, SIZES)
    unknown = [node.op for node in made.nodes if works.of([node.name]) is None]

    assert len(made.nodes) > 50
    assert unknown == []
