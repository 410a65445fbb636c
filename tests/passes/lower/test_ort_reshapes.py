"""OrtReshapes: reshapes that are undone go, and sizes that follow from others are not computed."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.passes import evaluate
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


MOVES = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 6] x) => (float[%s] y)
      <int64[4] heads = {0, -1, 2, 3}, int64[3] flat = {-1, 1, 6}, int64[3] copied = {0, -1, 6},
       int64[1] last = {3}, int64[1] six = {6}, float[batch, time, 6] z, float[batch, time, 2, 3] a,
       float[%s] b,
       int64[1] rows, int64[1] tokens, int64[3] told>
    {
      z = Neg (x)
      a = Reshape (z, heads)
      rows = Shape <start = 0, end = 1> (x)
      tokens = Shape <start = 1, end = 2> (x)
      told = Concat <axis = 0> (rows, tokens, six)
      %s
    }
"""
BACK = "t = Transpose <perm = [0, 2, 1, 3]> (a) b = Transpose <perm = [0, 2, 1, 3]> (t)"
WIDE = (
    "t = Transpose <perm = [1, 0, 2]> (z) b = Unsqueeze (t, last)"
    " u = Transpose <perm = [1, 3, 0, 2]> (b) y = Exp (u)"
)
OTHER = "b = Transpose <perm = [0, 2, 1, 3]> (a) y = Transpose <perm = [0, 1, 3, 2]> (b)"
FOUR = "batch, time, 2, 3"


@pytest.mark.parametrize(
    ("sizes", "between", "nodes", "kinds"),
    [
        ("rest, 1, 6", FOUR, f"{BACK} y = Reshape (b, flat)", ["Neg", "Reshape"]),
        ("batch, time, 6", FOUR, f"{BACK} y = Reshape (b, told)", ["Neg", "Reshape"]),
        ("batch, 1, time, 6", "time, batch, 6, 1", WIDE, ["Neg", "Unsqueeze", "Exp"]),
        # Sizes that are copied from what is reshaped, and axes that are in another order.
        ("batch, time, 6", FOUR, f"{BACK} y = Reshape (b, copied)", ["Neg", "Reshape", "Reshape"]),
        ("batch, 2, 3, time", FOUR, OTHER, ["Neg", "Reshape", "Transpose"]),
    ],
    ids=["numbers", "read", "unsqueezed", "copied", "turned"],
)  # fmt: skip
def test_moves_one_after_the_other_are_one(
    apply: Callable[..., ir.Model], sizes: str, between: str, nodes: str, kinds: list[str]
) -> None:
    text = MOVES % (sizes, between, nodes)
    plain = ir.from_onnx_text(text)
    model = apply(text, OrtReshapes())
    RemoveDead().run(model, Context())

    x = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(
        evaluate.run(model, {"x": x})["y"], evaluate.run(plain, {"x": x})["y"]
    )
    left = ("Constant", "Shape", "Concat")
    assert [node.op_type for node in model.graph if node.op_type not in left] == kinds
