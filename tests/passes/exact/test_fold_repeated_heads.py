"""FoldRepeatedHeads: heads repeated in place are shared, anything else is left alone."""

import onnx
import onnx_ir as ir
import pytest

from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.exact.fold_repeated_heads import FoldRepeatedHeads

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, 4, time, 2] q, float[batch, 2, time, 2] k, float[batch, 2, time, 2] v)
      => (float[batch, 4, time, 2] y)
    <int64[4] picks = {%s}>
    {
      k0 = Identity (k)
      v0 = Identity (v)
      rk = Gather <axis = 1> (k0, picks)
      rv = Gather <axis = 1> (v0, picks)
      y = Attention <is_causal = 1> (q, rk, rv)
    }
"""


@pytest.mark.parametrize(("picks", "folds"), [("0, 0, 1, 1", True), ("0, 1, 0, 1", False)])
def test_only_heads_repeated_in_place_fold(picks: str, folds: bool) -> None:
    """Head j of the repeated keys must be head j // r of the real ones, found by running them."""
    text = TEXT % picks
    model = ir.from_onnx_text(text)
    for node in model.graph:
        for value in node.outputs:
            if value.name in ("k0", "v0", "rk", "rv"):
                heads = 2 if value.name in ("k0", "v0") else 4
                value.shape = ir.Shape(["batch", heads, "time", 2])
                value.type = ir.TensorType(ir.DataType.FLOAT)
    context = Context()
    [record] = pipeline.run(model, [FoldRepeatedHeads()], context, check=True)
    assert record.result.changed is folds
    attention = next(node for node in model.graph if node.op_type == "Attention")
    assert [v.name for v in attention.inputs[1:] if v is not None] == (
        ["k0", "v0"] if folds else ["rk", "rv"]
    )
    assert not FoldRepeatedHeads().run(model, context).changed


STATES = """
    <ir_version: 10, opset_import: ["" : 27]>
    g (float[batch, time, 8] q, float[batch, time, 2, 3] k, float[batch, 2, time, 5] v,
       float[batch, time, 2] d, float[batch, time, 4] other)
      => (float[batch, time, 20] y)
    <int64[4] picks = {%s}, int64[1] three = {3}, int64[5] wide = {1, 1, 1, 2, 1},
     int64[3] keys = {0, 0, 12}, int64[3] values = {0, 0, 20}, float zero = {-0.5}>
    {
      k1 = Unsqueeze (k, three)
      k2 = Expand (k1, wide)
      rk = Reshape (k2, keys)
      v1 = Gather <axis = 1> (v, picks)
      v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
      rv = Reshape (v2, values)
      rd = Gather <axis = 2> (d, picks)
      decayed = Min (%s, zero)
      qq = Concat <axis = 2> (q, other)
      y, last = LinearAttention <update_rule = "gated", q_num_heads = 4, kv_num_heads = 4>
        (qq, rk, rv, , %s)
    }
"""


@pytest.mark.parametrize(
    ("picks", "decay", "shared"),
    [
        ("0, 0, 1, 1", "rd", True),
        ("0, 1, 0, 1", "rd", False),  # values are not repeated in place
        ("0, 0, 1, 1", "other", False),  # each head decays by itself
        ("0, 0, 1, 1", "decayed", False),  # computed of what is repeated: not seen through
    ],
)
def test_heads_of_a_linear_attention_share_a_state_where_all_of_it_is_repeated(
    picks: str, decay: str, shared: bool
) -> None:
    """Keys with heads behind time and values with heads in front of it; decays with them."""
    proto = onnx.parser.parse_model(STATES % (picks, "rd", decay))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    [record] = pipeline.run(model, [FoldRepeatedHeads()], Context(), check=True)
    assert record.result.changed is shared
    node = next(node for node in model.graph if node.op_type == "LinearAttention")
    heads = {n: node.attributes[n].as_int() for n in ("q_num_heads", "kv_num_heads")}
    assert heads == {"q_num_heads": 4, "kv_num_heads": 2 if shared else 4}
    assert not FoldRepeatedHeads().run(model, Context()).changed
