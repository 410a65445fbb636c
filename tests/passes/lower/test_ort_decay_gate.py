"""OrtDecayGate: decay and step size of the gated delta rule as one node."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from intaglio.passes.base import Context
from intaglio.passes.exact.remove_dead import RemoveDead
from intaglio.passes.lower.ort_decay_gate import OrtDecayGate

TEXT = """
    <ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1]>
    g (float[batch, time, 8] q, float[batch, time, 2] a, float[batch, time, 2] b,
       float[batch, 2, 4, 4] past) => (float[batch, time, 8] y, float[batch, 2, 4, 4] present)
      <float[2] bias = {10.0, -2.0}, float[2] scale = {-0.01, -1.0}, float high = {20.0},
       float factor = {100.0},
       float[batch, time, 2] large, float[batch, time, 2] z, float[batch, time, 2] soft,
       float[batch, time, 2] softplus, float[batch, time, 2] decay, float[batch, time, 2] beta>
    {
      large = Mul (a, factor)
      z = Add (large, bias)
      soft = Softplus (z)
      above = Greater (z, high)
      softplus = Where (above, z, soft)
      decay = Mul (scale, softplus)
      beta = Sigmoid (b)
      y, present = com.microsoft.LinearAttention
          <update_rule = "gated_delta", q_num_heads = 2, kv_num_heads = 2>
          (q, q, q, past, decay, beta)
    }
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("Where (above, z, soft)", "Identity (soft)"),
        ("Add (large, bias)", "Add (bias, large)"),
        ("Mul (scale, softplus)", "Mul (softplus, scale)"),
    ],
)
def test_the_gates_become_one_node(apply: Callable[..., ir.Model], old: str, new: str) -> None:
    """With arguments on both sides of the threshold."""
    text = TEXT.replace(old, new) if old else TEXT
    if "Identity" in new:
        text = text.replace("softplus = Identity (soft)", "").replace(
            "scale, softplus)", "scale, soft)"
        )
    model = apply(text, OrtDecayGate())
    RemoveDead().run(model, Context())

    assert [n.op_type for n in model.graph] == ["Mul", "LinearAttentionGate", "LinearAttention"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("high = {20.0}", "high = {2.0}"),  # a choice that changes the value
        ("Where (above, z, soft)", "Where (above, soft, z)"),
        ("Sigmoid (b)", "Tanh (b)"),
        ("Softplus (z)", "Softplus (large)"),
        ("float[2] bias = {10.0, -2.0}", "float[1] bias = {10.0}"),  # one for all heads
        ("beta = Sigmoid (b)", "beta = Sigmoid (b) other = Relu (decay)"),
    ],
)
def test_other_gates_are_left(old: str, new: str) -> None:
    model = ir.from_onnx_text(TEXT.replace(old, new))

    assert not OrtDecayGate().run(model, Context()).changed
