"""Parts of a graph: what they hold, and what running them gives."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from intaglio.passes import evaluate

TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
agraph (float[N] x, float[N] y, bool flag) => (float[N] sum, float[N] chosen)
<float[1] w = {2.0}, float[1] unused = {3.0}>
{
    doubled = Mul(x, w)
    other = Neg(y)
    sum = Add(doubled, other)
    chosen = If(flag) <
        then_branch = yes () => (float[N] a) { a = Abs(doubled) },
        else_branch = no () => (float[N] b) { b = Identity(other) }
    >
}
"""


def model() -> ir.Model:
    return ir.from_onnx_text(TEXT)


def value(whole: ir.Model, name: str) -> ir.Value:
    return next(v for node in whole.graph for v in node.outputs if v.name == name)


def test_a_part_holds_what_its_values_are_computed_from_and_nothing_else() -> None:
    whole = model()
    part = evaluate.part(whole, [value(whole, "doubled")])

    assert [v.name for v in part.graph.inputs] == ["x"]
    assert list(part.graph.initializers) == ["w"]
    assert [node.op_type for node in part.graph] == ["Mul"]
    assert len(whole.graph) == 4  # as it was


def test_a_part_runs_to_the_values_of_the_whole() -> None:
    """Several values at once, in the order asked for."""
    whole = model()
    feeds = {"x": np.array([1, 2], np.float32), "y": np.array([3, 5], np.float32)}
    part = evaluate.part(whole, [value(whole, "sum"), value(whole, "doubled")])
    found = evaluate.run(part, feeds)

    assert list(found) == ["sum", "doubled"]
    assert found["sum"].tolist() == [-1, -1]
    assert found["doubled"].tolist() == [2, 4]


def test_what_subgraphs_take_from_outside_belongs_to_the_part() -> None:
    whole = model()
    part = evaluate.part(whole, [value(whole, "chosen")])
    feeds = {"x": np.array([-1], np.float32), "y": np.array([3], np.float32)}

    for flag, wanted in ((True, 2), (False, -3)):
        found = evaluate.run(part, {**feeds, "flag": np.array(flag)})
        assert found["chosen"].tolist() == [wanted]


def test_a_part_starts_at_what_is_given() -> None:
    """What that is computed from is left out; it is an input under its name."""
    whole = model()
    doubled = value(whole, "doubled")
    doubled.type, doubled.shape = whole.graph.inputs[0].type, whole.graph.inputs[0].shape
    part = evaluate.part(whole, [value(whole, "sum")], given=[doubled])

    assert {str(v.name) for v in part.graph.inputs} == {"doubled", "y"}
    assert [node.op_type for node in part.graph] == ["Neg", "Add"]
    feeds = {"doubled": np.array([7], np.float32), "y": np.array([3], np.float32)}
    assert evaluate.run(part, feeds)["sum"].tolist() == [4]


def test_a_part_of_an_input_is_that_input() -> None:
    whole = model()
    part = evaluate.part(whole, [whole.graph.inputs[1]])

    assert [v.name for v in part.graph.inputs] == ["y"]
    assert not list(part.graph)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
def test_large_initializers_are_lent_to_the_engine_as_they_are(dtype: Any) -> None:
    """The model itself keeps them, and so do later sessions of it."""
    weight = (np.arange(evaluate.LENT) % 100).astype(dtype)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["n"]))
    w = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
    rows = ir.node("Gather", [w, x])
    cast = ir.node("Cast", rows.outputs, {"to": ir.DataType.FLOAT})
    graph = ir.Graph(
        [x], cast.outputs, nodes=[rows, cast], initializers=[w], opset_imports={"": 23}
    )
    cast.outputs[0].name, cast.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    whole = ir.Model(graph, ir_version=10)

    for _ in range(2):
        found = evaluate.run(whole, {"x": np.array([3, 5])})["y"]
        assert found.tolist() == [3, 5]
    assert w.const_value is not None
    assert np.array_equal(w.const_value.numpy(), weight)
