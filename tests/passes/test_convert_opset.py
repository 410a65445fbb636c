"""Graphs of old opsets are brought to the newest, by a label or by rewriting."""

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.errors import PassError
from intaglio.graph_keys import MODULE
from intaglio.passes import evaluate
from intaglio.passes.convert_opset import convert_opset

TEXT = """
    <ir_version: 10, opset_import: ["" : 13]>
    g (float[2, 5, 300] x, float[300] w) => (float[2, 5, 1] y)
    { s = Mul (x, w)  y = ReduceMax <axes = [2]> (s) }
"""


def graph() -> ir.Model:
    model = ir.from_onnx_text(TEXT)
    weight = model.graph.inputs.pop(1)
    weight.const_value = ir.tensor(np.linspace(-1, 1, 300, dtype=np.float32), name="w")
    model.graph.initializers.add(weight)
    for index, node in enumerate(model.graph):
        node.name = f"node_{index}"
        node.metadata_props[MODULE] = "head"
    return model


def test_what_cannot_be_relabelled_is_rewritten() -> None:
    """Axes become an input; weights, names and module paths stay, and so does the result."""
    x = {"x": np.random.default_rng(0).standard_normal((2, 5, 300)).astype(np.float32)}
    before = evaluate.run(graph(), x)["y"]

    model = convert_opset(graph(), 27)

    assert model.opset_imports[""] == 27
    assert next(iter(model.graph.initializers)) == "w"
    assert {node.metadata_props.get(MODULE) for node in model.graph if node.name} >= {"head"}
    assert np.array_equal(evaluate.run(model, x)["y"], before)


def test_what_neither_way_can_is_refused() -> None:
    model = graph()
    next(iter(model.graph)).op_type = "Nonsense"

    with pytest.raises(PassError, match=r"Nonsense.*version converter cannot either"):
        convert_opset(model, 27)
