"""OrtUnitNorm: length one by the kernel of the root-mean-square norm."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from intaglio.passes.base import Context
from intaglio.passes.exact.remove_dead import RemoveDead
from intaglio.passes.lower.ort_unit_norm import OrtUnitNorm

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 3, 5] x) => (float[batch, time, 3, 5] y)
      <float epsilon = {0.5}, float two = {2.0}, int64[1] last = {-1},
       float[batch, time, 3, 1] root, float[batch, time, 3, 1] inverse>
    {
      squares = Pow (x, two)
      total = ReduceSum <keepdims = 1> (squares, last)
      more = Add (total, epsilon)
      root = Sqrt (more)
      inverse = Reciprocal (root)
      y = Mul (x, inverse)
    }
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("Pow (x, two)", "Mul (x, x)"),
        ("Mul (x, inverse)", "Mul (inverse, x)"),
        ("last = {-1}", "last = {3}"),
        ("Add (total, epsilon)", "Add (epsilon, total)"),
    ],
)
def test_scaling_to_length_one_is_one_norm(
    apply: Callable[..., ir.Model], old: str, new: str
) -> None:
    """An epsilon as large as the squares shows that it is shared among the entries."""
    model = apply(TEXT.replace(old, new) if old else TEXT, OrtUnitNorm())
    RemoveDead().run(model, Context())

    assert [node.op_type for node in model.graph] == ["RMSNormalization"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("last = {-1}", "last = {1}"),
        ("two = {2.0}", "two = {3.0}"),
        ("Pow (x, two)", "Mul (x, two)"),
        ("Sqrt", "Neg"),
        ("ReduceSum", "ReduceMax"),
    ],
)
def test_what_only_looks_like_it_is_left(old: str, new: str) -> None:
    model = ir.from_onnx_text(TEXT.replace(old, new))

    assert not OrtUnitNorm().run(model, Context()).changed
