"""ExpandTile: single entries that are repeated are said to be the same."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.exact.expand_tile import ExpandTile

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 2] x) => (float[%s] y)
    <int64[1] one = {1}, int64[3] three = {1, 1, 3}, int64[3] two = {1, 2, 1}, int64[1] last = {2},
     int64[1] zero = {0}>
    { %s }
"""


@pytest.mark.parametrize(
    "nodes",
    [
        "s = ReduceSum (x, last)  y = Tile (s, three)",
        """
        r = Shape <start = 0, end = 1> (x)  q = Concat <axis = 0> (r, one, one)
        s = Slice (x, zero, one, zero)  y = Tile (s, q)
        """,
    ],
    ids=["by a constant", "by a size that the result has"],
)
def test_single_entries_are_expanded(nodes: str) -> None:
    dims: list[int | str] = [1, "time", 2] if "Slice" in nodes else ["batch", "time", 1]
    model = ir.from_onnx_text(TEXT % (f"batch, time, {3 if dims[2] == 1 else 2}", nodes))
    next(v for node in model.graph for v in node.outputs if v.name == "s").shape = ir.Shape(dims)
    pipeline.run(model, [ExpandTile()], Context(), check=True)
    assert [node.op_type for node in model.graph][-1] == "Expand"


def test_several_entries_are_not(apply: Callable[..., ir.Model]) -> None:
    """A sequence that is repeated has entries after each other that differ."""
    model = apply(TEXT % ("batch, twice, 2", "y = Tile (x, two)"), ExpandTile())
    assert [n.op_type for n in model.graph] == ["Tile"]
