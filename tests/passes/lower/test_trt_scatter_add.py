"""TrtScatterAdd: sums into rows become products, and come to the same."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.lower.trt_scatter_add import TrtScatterAdd

HEAD = '<ir_version: 10, opset_import: ["" : 24]> g '
MATRIX = (
    HEAD
    + """(float[nodes, 3] x, int64[edges, 1] to, float[edges, 3] u) => (float[nodes, 3] y)
    { y = ScatterND <reduction = "add"> (x, to, u) }"""
)
STACK = (
    HEAD
    + """(float[nodes, 2, 3] x, int64[edges, 1] to, float[edges, 2, 3] u)
    => (float[nodes, 2, 3] y) { y = ScatterND <reduction = "add"> (x, to, u) }"""
)
VECTOR = (
    HEAD
    + """(float[nodes] x, int64[edges] to, float[edges] u) => (float[nodes] y)
    { y = ScatterElements <axis = 0, reduction = "add"> (x, to, u) }"""
)


def given(graph: ir.Graph, nodes: int, edges: int) -> dict[str, Any]:
    """Indices name rows from the front and from behind, some of them twice, and some rows never."""
    random, sizes = np.random.default_rng(0), {"nodes": nodes, "edges": edges}
    shapes = {
        str(value.name): [
            d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape or ()
        ]
        for value in graph.inputs
    }
    found = {name: random.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    return found | {"to": random.integers(-nodes, nodes - 1, shapes["to"])}


@pytest.mark.parametrize("text", [MATRIX, STACK, VECTOR])
def test_sums_are_those_of_the_standard(text: str) -> None:
    """Of many edges, one, and none."""
    plain, model = ir.from_onnx_text(text), ir.from_onnx_text(text)
    assert TrtScatterAdd().run(model, Context()).changed

    assert not any(node.op_type.startswith("Scatter") for node in model.graph)
    assert not TrtScatterAdd().run(model, Context()).changed
    for nodes, edges in ((5, 11), (4, 1), (3, 0)):
        arrays = given(plain.graph, nodes, edges)
        wanted = evaluate.run(plain, arrays)["y"]
        np.testing.assert_allclose(evaluate.run(model, arrays)["y"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"add"', '"mul"'),
        ('"add"', '"none"'),
        ("float[", "int64["),
        ("int64[edges, 1]", "int64[edges, 2]"),
        ("[nodes, 3]", "[nodes, width]"),
    ],
)
def test_what_is_no_sum_of_whole_rows_of_floats_stays(old: str, new: str) -> None:
    model = ir.from_onnx_text(MATRIX.replace(old, new))

    assert not TrtScatterAdd().run(model, Context()).changed
