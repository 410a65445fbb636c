"""MergeDuplicates: equal computations become one, equal parameters never do."""

from collections.abc import Callable

import onnx_ir as ir

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
