"""TrtGivenInputs: recurrences have no absent inputs, and compute the same."""

import numpy as np
import onnx_ir as ir
import pytest

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


@pytest.mark.parametrize(
    ("rule", "wide"), [("delta", True), ("delta", False), ("linear", True), ("gated", True)]
)
def test_a_linear_attention_without_decay_keeps_all_of_its_state(rule: str, wide: bool) -> None:
    """Only a rule whose rate of update comes after what is absent is changed."""
    given = {"delta": ", , beta", "linear": "", "gated": ", decay"}[rule]
    rate = "[batch, time, 2]" if wide else "[batch, time, 1]"
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 27]>
        g (float[batch, time, 6] x, float[batch, 2, 3, 3] past, float{rate} beta,
           float[batch, time, 2] decay) => (float[batch, time, 6] y, float[batch, 2, 3, 3] s) {{
            y, s = LinearAttention <update_rule = "{rule}", q_num_heads = 2, kv_num_heads = 2>
                   (x, x, x, past{given})
        }}
    """)
    random = np.random.default_rng(0)
    shapes = {"x": (2, 5, 6), "past": (2, 2, 3, 3), "beta": (2, 5, 2 if wide else 1)}
    values = {n: random.uniform(0, 0.5, s).astype(np.float32) for n, s in shapes.items()}
    values["decay"] = -random.uniform(0, 1, (2, 5, 2)).astype(np.float32)
    wanted = evaluate.run(model, values)
    changed = TrtGivenInputs().run(model, Context()).changed

    assert changed == (rule == "delta")
    assert all(None not in node.inputs for node in model.graph)
    for name, array in evaluate.run(model, values).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-6)
    assert not TrtGivenInputs().run(model, Context()).changed


def test_a_convolution_without_bias_has_one_of_zeros() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 27]>
        g (float[batch, 3, time] x, float[3, 1, 4] w, float[batch, 3, 3] past)
          => (float[batch, 3, time] y, float[batch, 3, 3] s)
        { y, s = CausalConvWithState <activation = "none"> (x, w, , past) }
    """)
    random = np.random.default_rng(0)
    shapes = {"x": (2, 3, 5), "w": (3, 1, 4), "past": (2, 3, 3)}
    given = {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    wanted = evaluate.run(model, given)

    assert TrtGivenInputs().run(model, Context()).changed
    assert all(None not in node.inputs for node in model.graph)
    for name, array in evaluate.run(model, given).items():
        np.testing.assert_array_equal(array, wanted[name])
