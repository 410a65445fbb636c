"""OrtReshapes: reshapes that are undone go, and sizes that follow from others are not computed."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from intaglio.passes.base import Context
from intaglio.passes.exact.remove_dead import RemoveDead
from intaglio.passes.lower.ort_reshapes import OrtReshapes

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 6] x) => (float[%s] y)
      <int64[1] first = {0}, int64[1] minus = {-1}, int64[1] zero = {0}, int64[1] two = {2},
       int64[1] three = {3}, int64[1] six = {6}, int64[1] rows, int64[1] tokens, int64 number,
       int64[1] again, int64[1] half, int64[1] flat>
    {
      rows = Shape <start = 0, end = 1> (x)
      tokens = Shape <start = 1, end = 2> (x)
      number = Squeeze (rows, first)
      again = Reshape (number, minus)
      half = Mul (again, tokens)
      flat = Mul (half, two)
      target = Concat <axis = 0> (%s)
      y = Reshape (x, target)
    }
"""


@pytest.mark.parametrize(
    ("shape", "parts"),
    [("flat, 3", "flat, three"), ("half, 2, 3", "half, two, three"), ("half, 6", "half, six")],
)
def test_the_one_size_that_is_computed_follows_from_the_others(
    apply: Callable[..., ir.Model], shape: str, parts: str
) -> None:
    model = apply(TEXT % (shape, parts), OrtReshapes())
    RemoveDead().run(model, Context())
    assert [node.op_type for node in model.graph] == ["Constant", "Reshape"]


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ("batch, time, 2, 3", "again, tokens, two, three"),
        ("batch, rest", "again, minus"),
        ("batch, time, 6", "again, zero, six"),
    ],
    ids=["two computed", "one to be found", "one to be copied"],
)
def test_others_are_computed_as_before(
    apply: Callable[..., ir.Model], shape: str, parts: str
) -> None:
    """But for the size that is made a number and a vector again, which is taken as it is."""
    model = apply(TEXT % (shape, parts), OrtReshapes())
    RemoveDead().run(model, Context())
    kinds = [node.op_type for node in model.graph]
    assert kinds[-2:] == ["Concat", "Reshape"]
    assert set(kinds[:-2]) == {"Shape"}
