"""StabilizeLogSigmoid: the same function, finite and precise at both ends."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from intaglio.passes import evaluate
from intaglio.passes.exact.stabilize_log_sigmoid import StabilizeLogSigmoid

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 2] x) => (float[batch, time, 2] y) { s = Sigmoid (x) y = Log (s) }
"""


def test_large_arguments_neither_overflow_nor_vanish(apply: Callable[..., ir.Model]) -> None:
    """At -200 the result is -200 and not -inf; at 20 it is -2e-9 and not 0."""
    x = np.array([[[-200.0, -89.0], [0.0, 20.0]]], np.float32)
    plain = evaluate.run(ir.from_onnx_text(TEXT), {"x": x})["y"]
    assert np.isneginf(plain[0, 0]).all()
    assert plain[0, 1, 1] == 0

    y = evaluate.run(apply(TEXT, StabilizeLogSigmoid()), {"x": x})["y"]
    np.testing.assert_allclose(y, -np.logaddexp(0, -x.astype(np.float64)), rtol=1e-6)


def test_a_sigmoid_that_something_else_needs_stays(apply: Callable[..., ir.Model]) -> None:
    """Only the Log is rewritten."""
    text = TEXT.replace("y = Log (s)", "l = Log (s) y = Mul (l, s)")
    model = apply(text, StabilizeLogSigmoid())
    assert [n.op_type for n in model.graph] == ["Sigmoid", "Neg", "Softplus", "Neg", "Mul"]
