"""OrtGroupQueryAttention: used where the batch is one, left alone elsewhere."""

import onnx_ir as ir
import pytest

from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.lower.ort_group_query_attention import OrtGroupQueryAttention
from intaglio.state import Layout, StateSpec

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, 4, time, 8] q, float[batch, 2, time, 8] k, int64[batch] past_length,
       float[batch, 2, capacity, 8] past_k, float[batch, 2, capacity, 8] past_v)
      => (float[batch, 4, time, 8] y, float[batch, 2, capacity, 8] new_k,
          float[batch, 2, capacity, 8] new_v)
    {
      count = Shape <start = 2, end = 3> (q)
      total = Add (past_length, count)
      new_k = TensorScatter <axis = 2> (past_k, k, past_length)
      new_v = TensorScatter <axis = 2> (past_v, k, past_length)
      y = Attention <is_causal = 1> (q, new_k, new_v, , , , total)
    }
"""


def caches() -> list[StateSpec]:
    return [
        StateSpec(
            input=f"past_{port[0]}",
            output=f"new_{port[0]}",
            dtype="float32",
            shape=("batch", 2, "capacity", 8),
            layout=Layout.STATIC,
            axis=2,
            op="attention",
            port=port,
            module="",
            layer=0,
            call=0,
        )
        for port in ("key", "value")
    ]


@pytest.mark.parametrize(("batch", "fused"), [(1, True), (None, False), (2, False)])
def test_the_fused_kernel_serves_batch_one_only(batch: int | None, fused: bool) -> None:
    """Its CPU kernel refuses several tokens with a past in larger batches."""
    model = ir.from_onnx_text(TEXT)
    context = Context(states=caches(), batch=batch)
    [record] = pipeline.run(model, [OrtGroupQueryAttention()], context, check=True)
    assert record.result.changed is fused
    assert (record.error is not None) is fused
    assert ("GroupQueryAttention" in [node.op_type for node in model.graph]) is fused
