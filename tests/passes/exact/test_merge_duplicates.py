"""MergeDuplicates: equal computations become one, equal parameters never do."""

from collections.abc import Callable

import onnx_ir as ir

from intaglio.passes.base import Context
from intaglio.passes.exact.fold_constants import FoldConstants
from intaglio.passes.exact.merge_duplicates import MergeDuplicates

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 2] x) => (float[batch, time, 2] y)
    <float[2] first = {1.0, 1.0}, float[2] second = {1.0, 1.0}>
    {
      a = Exp (x)
      b = Exp (x)
      c = Neg (a)
      d = Neg (b)
      e = Mul (c, first)
      f = Mul (d, second)
      y = Add (e, f)
    }
"""


def test_equal_nodes_merge_and_equal_parameters_stay_two(apply: Callable[..., ir.Model]) -> None:
    """Two norms that start at ones are two parameters."""
    model = apply(TEXT, MergeDuplicates())
    assert [node.op_type for node in model.graph] == ["Exp", "Neg", "Mul", "Mul", "Add"]
    assert list(model.graph.initializers) == ["first", "second"]


def test_equal_folded_constants_merge_and_so_does_what_is_computed_from_them() -> None:
    """Each layer computes its own table of frequencies; one is enough."""
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, 2] x) => (float[batch, time, 2] y)
        <float[2] weight = {2.0, 3.0}>
        {
          a = Constant <value_floats = [2.0, 3.0]> ()
          b = Constant <value_floats = [2.0, 3.0]> ()
          c = Exp (a)
          d = Exp (b)
          e = Mul (x, c)
          f = Mul (x, d)
          h = Add (e, f)
          y = Mul (h, weight)
        }
    """)
    context = Context()
    FoldConstants().run(model, context)
    assert MergeDuplicates().run(model, context).changed
    ops = [node.op_type for node in model.graph if node.op_type != "Constant"]
    assert ops == ["Mul", "Add", "Mul"]
    assert len(model.graph.initializers) == 2
