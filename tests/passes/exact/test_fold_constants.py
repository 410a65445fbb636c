"""FoldConstants: constants fold, parameters keep their names."""

from collections.abc import Callable

import onnx_ir as ir

from intaglio.passes.base import Context
from intaglio.passes.exact.fold_constants import FoldConstants

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 2] x) => (float[batch, time, 2] y)
    <float[2, 2] weight = {1.0, 2.0, 3.0, 4.0}>
    {
      a = Constant <value_float = 2.0> ()
      b = Constant <value_float = 3.0> ()
      c = Mul (a, b)
      t = Transpose <perm = [1, 0]> (weight)
      h = MatMul (x, t)
      y = Mul (h, c)
    }
"""


def test_numbers_fold_and_parameters_do_not(apply: Callable[..., ir.Model]) -> None:
    """Mul of two constants goes; Transpose of a parameter stays, and so does the parameter."""
    model = apply(TEXT, FoldConstants())
    ops = [node.op_type for node in model.graph if node.op_type != "Constant"]
    assert ops == ["Transpose", "MatMul", "Mul"]
    assert list(model.graph.initializers) == ["weight", "c"]


def test_what_was_folded_folds_on(apply: Callable[..., ir.Model]) -> None:
    """A constant that folding made is no parameter: a later run folds with it."""
    model = apply(TEXT, FoldConstants())
    scale = next(node for node in model.graph if node.op_type == "Mul")
    root = ir.node("Sqrt", [scale.inputs[1]], name="root")
    model.graph.insert_before(scale, root)
    scale.replace_input_with(1, root.outputs[0])
    assert FoldConstants().run(model, Context()).changed
    assert "Sqrt" not in {node.op_type for node in model.graph}
