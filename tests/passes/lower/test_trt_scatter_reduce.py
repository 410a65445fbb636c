"""TrtScatterReduce: scatters with any reduction become comparisons, and come to the same."""

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.lower.trt_scatter_reduce import TrtScatterReduce

HEAD = '<ir_version: 10, opset_import: ["" : 24]> g '
ALONG = (
    HEAD
    + """(float[batch, nodes, 3] x, int64[batch, edges, 3] to, float[batch, edges, 3] u)
    => (float[batch, nodes, 3] y)
    { y = ScatterElements <axis = 1, reduction = "add"> (x, to, u) }"""
)
LAST = ALONG.replace("[batch, nodes, 3]", "[batch, 3, nodes]").replace(
    "[batch, edges, 3]", "[batch, 3, edges]"
)
PLACES = (
    HEAD
    + """(float[batch, nodes, 3] x, int64[edges, 2] to, float[edges, 3] u)
    => (float[batch, nodes, 3] y) { y = ScatterND <reduction = "add"> (x, to, u) }"""
)
TEXTS = {
    "along the second axis": ALONG,
    "along the last": LAST.replace("axis = 1", "axis = -1"),
    "of whole numbers": ALONG.replace("float", "int64"),
    "by coordinates": PLACES,
    "of a free width": PLACES.replace(", 3]", ", width]"),
    "of single entries": PLACES.replace("nodes, 3]", "nodes]").replace(
        "float[edges, 3]", "float[edges]"
    ),
}


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
@pytest.mark.parametrize("case", TEXTS)
def test_reductions_are_those_of_the_standard(case: str, reduction: str) -> None:
    """Indices name places from the front and from behind, some twice and some never."""
    text = TEXTS[case].replace('"add"', f'"{reduction}"')
    plain, model = ir.from_onnx_text(text), ir.from_onnx_text(text)
    assert TrtScatterReduce().run(model, Context()).changed
    assert not any(node.op_type.startswith("Scatter") for node in model.graph)
    assert not TrtScatterReduce().run(model, Context()).changed
    for sizes in (
        {"batch": 2, "nodes": 5, "edges": 7, "width": 3},
        {"batch": 1, "nodes": 2, "edges": 1, "width": 1},
    ):
        random, feeds = np.random.default_rng(0), {}
        for value in plain.graph.inputs:
            shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape or ()]
            whole = value.dtype == ir.DataType.INT64
            drawn = random.integers(-3, 4, shape) if whole else random.normal(size=shape)
            feeds[str(value.name)] = drawn.astype(np.int64 if whole else np.float32)
        least = min(sizes["nodes"], sizes["batch"]) if "ND" in text else sizes["nodes"]
        feeds["to"] = random.integers(-least, least, feeds["to"].shape)
        wanted = evaluate.run(plain, feeds)["y"]
        np.testing.assert_allclose(evaluate.run(model, feeds)["y"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"add"', '"none"'), ("int64[batch, edges, 3]", "int64[batch, edges, 2]"),
     ("nodes, 3]", "10000, 30000]")],
)  # fmt: skip
def test_other_scatters_and_vast_ones_stay(old: str, new: str) -> None:
    """What has fewer columns than the data, and what would take a matrix beyond reason."""
    text = ALONG.replace(old, new)
    if "30000" in new:
        text = text.replace("edges, 3]", "10000, 30000]")
    assert not TrtScatterReduce().run(ir.from_onnx_text(text), Context()).changed
