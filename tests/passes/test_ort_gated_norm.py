"""OrtGatedNorm: a norm and its gate as one node, heads apart or side by side."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from intaglio.passes.base import Context
from intaglio.passes.exact.remove_dead import RemoveDead
from intaglio.passes.lower.ort_gated_norm import OrtGatedNorm

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 2, 3] x, float[batch, time, 6] gate) => (float[batch, time, 6] y)
      <float[3] weight = {1.0, 2.0, -0.5}, int64[3] flat = {0, 0, 6},
       float[batch, time, 2, 3] n, float[batch, time, 6] m, float[batch, time, 6] s,
       float[batch, time, 6] a>
    {
      n = RMSNormalization <axis = -1, epsilon = 0.25> (x, weight)
      m = Reshape (n, flat)
      s = Sigmoid (gate)
      a = Mul (gate, s)
      y = Mul (m, a)
    }
"""


def kinds(model: ir.Model) -> list[str]:
    RemoveDead().run(model, Context())
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


def test_heads_side_by_side_are_gated_apart(apply: Callable[..., ir.Model]) -> None:
    assert kinds(apply(TEXT, OrtGatedNorm())) == ["Reshape", "GatedRMSNorm", "Reshape"]


def test_heads_apart_need_no_reshape(apply: Callable[..., ir.Model]) -> None:
    text = TEXT.replace("[batch, time, 6]", "[batch, time, 2, 3]")
    text = text.replace("m = Reshape (n, flat)", "").replace("Mul (m, a)", "Mul (a, n)")

    assert kinds(apply(text, OrtGatedNorm())) == ["GatedRMSNorm"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Sigmoid (gate)", "Tanh (gate)"),
        ("axis = -1", "axis = 2"),
        ("y = Mul (m, a)", "y = Mul (m, a) z = Relu (m)"),
        ("y = Mul (m, a)", "y = Mul (m, a) z = Relu (n)"),
        ("y = Mul (m, a)", "y = Add (m, a)"),
        ("g (float[batch, time, 2, 3] x", "g (float[time, batch, 2, 3] x"),
    ],
)
def test_other_products_are_left(old: str, new: str) -> None:
    text = TEXT.replace(old, new)
    if "time, batch" in new:  # tokens and rows exchanged
        text = text.replace("float[batch, time, 2, 3] n", "float[time, batch, 2, 3] n")
    model = ir.from_onnx_text(text)

    assert not OrtGatedNorm().run(model, Context()).changed
