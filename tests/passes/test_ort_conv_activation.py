"""OrtConvActivation: convolutions apply the SiLU behind them."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from intaglio.passes.base import Context
from intaglio.passes.lower.ort_conv_activation import OrtConvActivation

TEXT = """
    <ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1]>
    g (float[batch, 2, time] x, float[2, 1, 3] weight, float[batch, 2, 2] past)
      => (float[batch, 2, time] y, float[batch, 2, 2] present)
      <float[batch, 2, time] c, float[batch, 2, time] gate, float[2] bias = {0.5, -0.5}>
    {
      c, present = com.microsoft.CausalConvWithState (x, weight, bias, past)
      gate = Sigmoid (c)
      y = Mul (c, gate)
    }
"""


def test_the_activation_becomes_an_attribute(apply: Callable[..., ir.Model]) -> None:
    model = apply(TEXT, OrtConvActivation())

    assert [node.op_type for node in model.graph] == ["CausalConvWithState"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("CausalConvWithState (", 'CausalConvWithState <activation = "silu"> ('),
        ("Sigmoid (c)", "Tanh (c)"),
        ("Sigmoid (c)", "Sigmoid (x)"),
        ("y = Mul", "other = Relu (c) y = Mul"),  # the convolution itself is taken, too
        ("y = Mul", "other = Relu (gate) y = Mul"),
        ("c, present", "present, c"),  # not the output but the state
    ],
)
def test_other_activations_are_left(old: str, new: str) -> None:
    model = ir.from_onnx_text(TEXT.replace(old, new))

    assert not OrtConvActivation().run(model, Context()).changed
