"""OrtDomains: recurrent operators go where ONNX Runtime has kernels."""

from collections.abc import Callable

import onnx_ir as ir

from intaglio.passes.lower.ort_domains import OrtDomains

TEXT = """
    <ir_version: 13, opset_import: ["" : 27]>
    g (float[batch, time, 8] x, float[batch, 2, 4, 4] past, float[batch, 8, 3] cache,
       float[batch, 8, time] c) => (float[batch, time, 8] y, float[batch, 8, time] z)
    <float[8, 1, 4] weight = {%s}>
    {
      y, present = LinearAttention <update_rule = "linear", q_num_heads = 2, kv_num_heads = 2,
        scale = 0.5> (x, x, x, past)
      z, kept = CausalConvWithState <activation = "silu"> (c, weight, , cache)
    }
"""


def test_recurrent_operators_switch_and_compute_the_same(apply: Callable[..., ir.Model]) -> None:
    """The check runs both forms; inputs and attributes are untouched."""
    model = apply(TEXT % ", ".join(["0.5"] * 32), OrtDomains())
    assert {node.domain for node in model.graph} == {"com.microsoft"}
    assert model.graph.opset_imports["com.microsoft"] == 1
