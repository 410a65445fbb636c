"""FoldSizes: known sizes become numbers, free ones stay."""

from collections.abc import Callable

import onnx_ir as ir

from intaglio.passes.exact.fold_sizes import FoldSizes
from intaglio.passes.graph import constant

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 6] x)
      => (int64 width, int64[1] last, int64[1] tail, int64 length, int64[3] all)
    <float[batch, time, 6] z, int64 one = {1},
     int64 two = {2}, int64[1] minus = {-1}, int64[1] end = {9223372036854775807}>
    {
      shape = Shape (x)
      width = Gather (shape, two)
      last = Slice (shape, minus, end)
      tail = Shape <start = 2> (x)
      length = Gather (shape, one)
      z = Tanh (x)
      all = Shape (z)
    }
"""


def test_sizes_that_are_known_become_numbers(apply: Callable[..., ir.Model]) -> None:
    """Picked by Gather, Slice or Shape itself; the number of tokens is taken from an input."""
    model = apply(TEXT, FoldSizes())
    found = [constant(value) for value in model.graph.outputs]
    assert [None if x is None else x.tolist() for x in found] == [6, [6], [6], None, None]
    shapes = [node for node in model.graph if node.op_type == "Shape"]
    assert {node.inputs[0].name for node in shapes if node.inputs[0]} == {"x"}


CUT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 6] x) => (float[batch, rest, 6] y, float[batch, other, 6] z)
    <int64[1] zero = {0}, int64[1] axis = {1}, int64[1] less = {-2}, int64[1] two = {2}>
    {
      length = Shape <start = 1, end = 2> (x)
      first = Add (less, length)
      y = Slice (x, zero, first, axis)
      rows = Shape <start = 0, end = 1> (x)
      others = Sub (rows, two)
      z = Slice (x, zero, others, axis)
    }
"""


def test_an_end_that_is_counted_from_the_size_of_its_axis_is_a_number(
    apply: Callable[..., ir.Model],
) -> None:
    """Not where it is the size of another axis."""
    cut, other = (n for n in apply(CUT, FoldSizes()).graph if n.op_type == "Slice")
    assert constant(cut.inputs[2]) == [-2]
    assert constant(other.inputs[2]) is None


LAST = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 4] x) => (float[batch, 4] y, float[batch, 4] z, float[batch, time] w)
      <int64 last, int64 before, int64 other,
       int64[1] zero = {0}, int64 one = {1}, int64 two = {2}>
    {
      tokens = Shape <start = 1, end = 2> (x)
      count = Squeeze (tokens, zero)
      last = Sub (count, one)
      y = Gather <axis = 1> (x, last)
      before = Sub (count, two)
      z = Gather <axis = 1> (x, before)
      rows = Shape <start = 0, end = 1> (x)
      row = Squeeze (rows, zero)
      other = Sub (row, one)
      w = Gather <axis = 2> (x, other)
    }
"""


def test_the_last_entry_is_counted_from_the_end(apply: Callable[..., ir.Model]) -> None:
    """Neither the one before, which may be none, nor one by the size of another axis."""
    found = [n for n in apply(LAST, FoldSizes()).graph if n.op_type == "Gather"]
    assert [constant(n.inputs[1]) for n in found] == [-1, None, None]
