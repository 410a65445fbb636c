"""OrtSkipNorm: the sum and its norm as one node, which gives both."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from intaglio.passes.base import Context
from intaglio.passes.lower.ort_skip_norm import OrtSkipNorm

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 4] a, float[batch, time, 4] b)
      => (float[batch, time, 4] y, float[batch, time, 4] z)
      <float[4] weight = {1.0, 2.0, 0.5, -1.0}, float[batch, time, 4] s, float[batch, time, 4] n>
    {
      s = Add (a, b)
      z = Neg (s)
      n = RMSNormalization <axis = -1, epsilon = 0.01> (s, weight)
      y = Relu (n)
    }
"""


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_sum_and_norm_become_one_node(apply: Callable[..., ir.Model]) -> None:
    """Nodes between them that take the sum still find it."""
    model = apply(TEXT, OrtSkipNorm())

    assert kinds(model) == ["SkipSimplifiedLayerNormalization", "Neg", "Relu"]


def test_a_second_norm_of_the_sum_stays(apply: Callable[..., ir.Model]) -> None:
    text = TEXT.replace("z = Neg (s)", "z = RMSNormalization <axis = -1> (s, weight)")
    model = apply(text, OrtSkipNorm())

    assert sorted(kinds(model)) == ["RMSNormalization", "Relu", "SkipSimplifiedLayerNormalization"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(float[batch, time, 4] a,", "(float[4] a,"),  # broadcast
        ("float[4] weight = {1.0, 2.0, 0.5, -1.0}", "float[1] weight = {2.0}"),
        ("axis = -1, epsilon", "axis = 1, epsilon"),
        ("s = Add (a, b)", "s = Sub (a, b)"),
        (" n = RMS", " v = Abs (weight) n = RMS"),  # the weight is not there yet
    ],
)
def test_other_sums_are_left(old: str, new: str) -> None:
    text = TEXT.replace(old, new)
    if "Abs" in new:
        text = text.replace("(s, weight)", "(s, v)")
    model = ir.from_onnx_text(text)

    assert not OrtSkipNorm().run(model, Context()).changed
