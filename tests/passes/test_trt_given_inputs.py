"""TrtGivenInputs: nodes of our own operators have no absent inputs, and compute the same."""

import numpy as np
import onnx_ir as ir

from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.lower.trt_given_inputs import TrtGivenInputs
from intaglio.passes.own_ops import define

TEXT = """<ir_version: 10, opset_import: ["" : 24, "intaglio" : 1]>
    g (float[batch, time, 3] x, float[3] a, float[3, 3] w, float[batch, 3] past)
      => (float[batch, time, 3] y, float[batch, 3] s) {
        y, s = intaglio.PiecewiseLinearRNN <num_relu = 1> (x, a, w, a, , , past)
    }
"""


def test_what_is_absent_is_no_parameter() -> None:
    """The function that stands beside the node has the parameters that are given, by name."""
    model = ir.from_onnx_text(TEXT)
    define(model)
    random = np.random.default_rng(0)
    shapes = {"x": (2, 5, 3), "a": (3,), "w": (3, 3), "past": (2, 3)}
    given = {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    wanted = evaluate.run(model, given)
    result = TrtGivenInputs().run(model, Context())
    got = evaluate.run(model, given)

    assert result.changed
    (node,) = model.graph
    assert [value.name for value in node.inputs if value] == ["x", "a", "w", "a", "past"]
    (function,) = model.functions.values()
    names = [value.name for value in function.inputs]
    assert names == ["drive", "A", "W", "h", "past_state"]
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array)
    assert not TrtGivenInputs().run(model, Context()).changed


def test_a_node_that_has_all_stays() -> None:
    """Inputs that are absent at the end are none at all."""
    model = ir.from_onnx_text(TEXT.replace("(x, a, w, a, , , past)", "(x, a, w, a)"))
    define(model)
    before = set(model.functions)

    assert not TrtGivenInputs().run(model, Context()).changed
    assert set(model.functions) == before
