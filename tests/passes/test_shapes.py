"""Shapes are found by running a graph at several sizes."""

import onnx_ir as ir

from intaglio.passes.graph import dims
from intaglio.passes.shapes import infer_shapes

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 6] x) => (y)
    <int64[2] rows = {-1, 6}, int64[4] heads = {0, 0, 2, 3}, int64[6] pads = {0, 2, 0, 0, 0, 0}>
    {
      flat = Reshape (x, rows)
      cut = Reshape (x, heads)
      pad = Pad (x, pads)
      pairs = Einsum <equation = "bti,bsi->bts"> (x, x)
      both = Concat <axis = 0> (x, x)
      some = NonZero (x)
      y = Identity (cut)
    }
"""


def test_every_dimension_is_said_in_batch_and_time() -> None:
    """Or is left without a name, where it depends on contents."""
    model = ir.from_onnx_text(TEXT)
    infer_shapes(model)
    found = {value.name: dims(value) for node in model.graph for value in node.outputs}
    assert found == {
        "flat": ("batch*time", 6),
        "cut": ("batch", "time", 2, 3),
        "pad": ("batch", "time + 2", 6),
        "pairs": ("batch", "time", "time"),
        "both": ("2*batch", "time", 6),
        "some": (3, "6*batch*time"),
        "y": ("batch", "time", 2, 3),
    }
