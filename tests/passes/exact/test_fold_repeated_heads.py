"""FoldRepeatedHeads: heads repeated in place are shared, anything else is left alone."""

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
