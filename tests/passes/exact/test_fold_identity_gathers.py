"""FoldIdentityGathers: a gather that counts through all entries is the value itself."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from intaglio.passes.base import Context
from intaglio.passes.exact.fold_identity_gathers import FoldIdentityGathers

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time] x) => (float[batch, 1, time, 1] y)
    <int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[3] tall = {1, 2, 3},
     int64[3] wide = {0, 1, 3}, int64[1] last = {4}>
    {
      rows = Shape <start = 0, end = 1> (x)
      columns = Shape <start = 1, end = 2> (x)
      B = Squeeze (rows, first)
      T = Squeeze (columns, first)
      b = Range (zero, B, one)
      t = Range (START, T, one)
      b4 = Unsqueeze (b, tall)
      t4 = Unsqueeze (t, wide)
      both = Max (b4, t4)
      shape = Shape (both)
      bs = Expand (b4, shape)
      ts = Expand (t4, shape)
      b5 = Unsqueeze (bs, last)
      t5 = Unsqueeze (ts, last)
      places = Concat <axis = -1> (PLACES)
      y = GatherND (x, places)
    }
"""
SHAPES: dict[str, list[int | str]] = {
    "b": ["batch"], "t": ["time"], "b4": ["batch", 1, 1, 1], "t4": [1, 1, "time", 1],
    "both": ["batch", 1, "time", 1],
}  # fmt: skip


def graph(places: str = "b5, t5", start: str = "zero") -> ir.Model:
    model = ir.from_onnx_text(TEXT.replace("PLACES", places).replace("START", start))
    for value in (value for node in model.graph for value in node.outputs):
        if value.name in SHAPES:
            value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(SHAPES[value.name])
    return model


def test_a_gather_of_every_row_and_token_is_the_value(apply: Callable[..., ir.Model]) -> None:
    """As masks of libraries look up what belongs to row b and token i."""
    model = apply(ir.to_onnx_text(graph()), FoldIdentityGathers())
    assert "GatherND" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize(("places", "start"), [("t5, b5", "zero"), ("b5, t5", "one")])
def test_another_order_or_another_start_is_kept(places: str, start: str) -> None:
    assert not FoldIdentityGathers().run(graph(places, start), Context()).changed
