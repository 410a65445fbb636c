"""WidenKinds: operators are computed in types of values that ONNX Runtime has kernels for."""

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.errors import UnsupportedError
from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.exact.widen_kinds import WidenKinds

TEXT = """
    <ir_version: 10, opset_import: ["" : 23]>
    g (%(kind)s[2, 3] x, %(kind)s[2, 3] y, bool[2, 1] c) => (%(kind)s[2, 3] z)
    { w = %(node)s  v = Identity (w)  z = Identity (v) }
"""
X, Y = np.array([[1, 0, 1], [0, 0, 1]]), np.array([[0, 0, 1], [1, 0, 1]])
CHOICE = np.array([[True], [False]])


def _model(kind: str, node: str) -> ir.Model:
    model = ir.from_onnx_text(TEXT % {"kind": kind, "node": node})
    first = model.graph[0].outputs[0]
    first.type, first.shape = model.graph.outputs[0].type, ir.Shape([2, 3])
    return model


@pytest.mark.parametrize("kind", ["bool", "int16"])
def test_where_of_any_kind_runs(kind: str) -> None:
    """ONNX Runtime has no Where of these."""
    model, dtype = _model(kind, "Where (c, x, y)"), {"bool": np.bool_, "int16": np.int16}[kind]
    feeds = {"x": X.astype(dtype), "y": Y.astype(dtype), "c": CHOICE}
    with pytest.raises(UnsupportedError, match=r"the model: Where .* takes .*bool"):
        evaluate.run(model, feeds)
    WidenKinds().run(model, Context())
    assert np.array_equal(evaluate.run(model, feeds)["z"], np.where(CHOICE, X, Y).astype(dtype))


def test_bfloat16_is_rounded_after_each_operator() -> None:
    """257 is no bfloat16: 1 + 256 is 256 there, and so is 256 + 1 + 1."""
    text = """
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[1] x, float[1] y) => (float[1] z) {
            a = Cast <to = 16> (x)  b = Cast <to = 16> (y)
            c = Add (a, b)  d = Add (c, b)  z = Cast <to = 1> (d)
        }
    """
    model = ir.from_onnx_text(text)
    for node in list(model.graph)[:4]:
        node.outputs[0].type = ir.TensorType(ir.DataType.BFLOAT16)
        node.outputs[0].shape = ir.Shape([1])
    WidenKinds().run(model, Context())
    feeds = {"x": np.array([256], np.float32), "y": np.array([1], np.float32)}
    assert evaluate.run(model, feeds)["z"] == 256


def test_what_has_kernels_stays() -> None:
    model = _model("float", "Where (c, x, y)")
    assert not WidenKinds().run(model, Context()).changed
