"""ExpandTile: single entries that are repeated are said to be the same."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from intaglio.passes.exact.expand_tile import ExpandTile

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 2] x) => (float[%s] y)
    <int64[1] one = {1}, int64[3] three = {1, 1, 3}, int64[3] two = {1, 2, 1}, int64[1] last = {2}>
    { %s }
"""


@pytest.mark.parametrize(
    ("shape", "nodes"),
    [
        ("batch, time, 3", "s = ReduceSum (x, last) y = Tile (s, three)"),
        (
            "batch, time, 2",
            "r = Shape <start = 0, end = 1> (x) q = Concat <axis = 0> (r, one, one)"
            " f = Slice (x, zero, one, zero) y = Tile (f, q)",
        ),
    ],
)
def test_single_entries_are_expanded(
    apply: Callable[..., ir.Model], shape: str, nodes: str
) -> None:
    """By a constant, or by the size that the result is known to have."""
    text = (TEXT % (shape, nodes)).replace("last = {2}", "last = {2}, int64[1] zero = {0}")
    model = ir.from_onnx_text(text)
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    for name, dims in (("s", ["batch", "time", 1]), ("f", [1, "time", 2])):
        if name in by_name:
            by_name[name].shape = ir.Shape(dims)
    kept = ExpandTile().run(model, None)  # type: ignore[arg-type]  # it asks nothing of it
    assert kept.changed
    assert [n.op_type for n in model.graph][-1] == "Expand"


def test_several_entries_are_not(apply: Callable[..., ir.Model]) -> None:
    """A sequence that is repeated has entries after each other that differ."""
    model = apply(TEXT % ("batch, twice, 2", "y = Tile (x, two)"), ExpandTile())
    assert [n.op_type for n in model.graph] == ["Tile"]
