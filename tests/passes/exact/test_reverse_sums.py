"""ReverseSums: a sum between two flips is one in reverse."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from intaglio.passes.base import Context
from intaglio.passes.exact.reverse_sums import ReverseSums

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 3] x) => (float[batch, time, 3] y)
      <float[batch, time, 3] a, float[batch, time, 3] b, int64 along = {1}, int64 other = {2},
       int64[1] last = {-1}, int64[1] all = {-9223372036854775808}, int64[1] axis = {1},
       int64[1] some = {-3}, int64[1] third = {2}>
    {
      a = Slice (x, last, all, axis, last)
      b = CumSum <exclusive = 1> (a, along)
      y = Slice (b, last, all, axis, last)
    }
"""


@pytest.mark.parametrize("how", ["exclusive = 1", "exclusive = 0", "reverse = 1"])
def test_a_sum_between_flips_runs_in_reverse(how: str, apply: Callable[..., ir.Model]) -> None:
    model = apply(TEXT.replace("exclusive = 1", how), ReverseSums())
    assert [node.op_type for node in model.graph if node.outputs[0].uses()][-1:] != ["CumSum"]
    final = model.graph.outputs[0].producer()
    assert final is not None
    assert final.op_type == "CumSum"
    assert final.inputs[0] is model.graph.inputs[0]


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ("CumSum <exclusive = 1> (a, along)", "CumSum (a, other)"),  # along another axis
        ("a = Slice (x, last, all, axis, last)", "a = Slice (x, last, all, third, last)"),
        ("y = Slice (b, last, all, axis, last)", "y = Slice (b, axis, all, axis, last)"),
        ("a = Slice (x, last, all, axis, last)", "a = Neg (x)"),
    ],
)
def test_anything_else_stays(part: str, instead: str) -> None:
    model = ir.from_onnx_text(TEXT.replace(part, instead))
    assert not ReverseSums().run(model, Context()).changed
