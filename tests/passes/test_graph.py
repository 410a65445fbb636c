"""Weights that passes add: one name holds one content, and says which parameters are behind it."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.errors import PassError
from intaglio.graph_keys import PARTS
from intaglio.passes.graph import add_initializer, made_of

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
TEXT = f"{HEAD} g (float[2] x) => (float[2] y) {{ y = Identity (x) }}"


@pytest.fixture
def graph() -> ir.Graph:
    return ir.from_onnx_text(TEXT).graph


def test_the_same_content_is_registered_once(graph: ir.Graph) -> None:
    """Two layers that share a weight share what is made of it, whichever way it lies in memory."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    first = add_initializer(graph, "w.T", np.asfortranarray(array))

    assert add_initializer(graph, "w.T", array.copy()) is first
    assert list(graph.initializers) == ["w.T"]


@pytest.mark.parametrize(
    "other",
    [
        np.ones((2, 3), np.float32),
        np.zeros((3, 2), np.float32),
        np.zeros((2, 3), np.float64),
        np.full((2, 3), -0.0, np.float32),
    ],
    ids=["values", "shape", "dtype", "sign of zero"],
)
def test_a_name_is_not_reused_for_other_content(
    graph: ir.Graph, other: np.ndarray[Any, Any]
) -> None:
    """A parameter of the source may bear the name that a pass would give: that is said."""
    kept = add_initializer(graph, "w.scale", np.zeros((2, 3), np.float32))

    with pytest.raises(PassError, match=r"'w\.scale'.*another one of that name"):
        add_initializer(graph, "w.scale", other)
    assert graph.initializers["w.scale"] is kept


def test_what_is_made_of_made_weights_names_their_parameters(graph: ir.Graph) -> None:
    """Through every stage, each once and in order, also when the stage between is gone."""
    array = np.zeros(2, np.float32)
    add_initializer(graph, "a", array)
    add_initializer(graph, "a.codes", array, of=["a"])
    add_initializer(graph, "b.codes", array, of=["b"])
    stack = add_initializer(graph, "a.codes|b.codes", array, parts=["a.codes", "b.codes"])
    del graph.initializers["a.codes"]
    last = add_initializer(graph, "last", array, of=["a.codes|b.codes", "a"])

    assert made_of(graph.initializers["a"]) == ["a"]
    assert made_of(stack) == ["a", "b"]
    assert made_of(last) == ["a", "b"]
    assert stack.metadata_props[PARTS] == '["a.codes", "b.codes"]'


def test_a_file_keeps_what_weights_are_made_of(graph: ir.Graph) -> None:
    """Bisect reads it from a bundle."""
    value = add_initializer(graph, "w.scaled", np.zeros(2, np.float32), of=["w"])
    graph.append(ir.node("Add", [graph.inputs[0], value], outputs=[ir.val("z")]))
    again = ir.from_proto(ir.to_proto(ir.Model(graph, ir_version=10)))

    assert made_of(again.graph.initializers["w.scaled"]) == ["w"]
