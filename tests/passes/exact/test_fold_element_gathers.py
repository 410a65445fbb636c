"""FoldElementGathers: whole rows of a table are picked as rows, single entries as they are."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from intaglio.passes.exact.fold_element_gathers import FoldElementGathers


def outcome(
    apply: Callable[..., ir.Model], axis: int, table: str, places: str, *wide: str
) -> set[str]:
    """The operators that are left; the check runs both graphs.

    `table` and `places` are shapes, `wide` those to which they are repeated, if they are.
    """
    given, picked = wide or (table, places)
    text = f"""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[{table}] t, int64[{places}] x, float[{given}] u, float[{picked}] v)
            => (float[{picked}] y)
        <int64 three = {{3}}, int64[{places}] i, float[{given}] data, int64[{picked}] all>
        {{
          i = Mod (x, three)
          to = Shape (u)
          shape = Shape (v)
          data = Expand (t, to)
          all = Expand (i, shape)
          y = GatherElements <axis = {axis}> (data, all)
        }}
    """
    model = apply(text, FoldElementGathers())
    return {node.op_type for node in model.graph}


@pytest.mark.parametrize(
    ("axis", "shapes"),
    [
        (1, ["1, 3", "batch, time", "batch, 3", "batch, time"]),
        (1, ["batch, 3, 2", "1, time, 1", "batch, 3, 2", "batch, time, 2"]),
        (1, ["1, 3, 2", "batch, time, 1", "batch, 3, 2", "batch, time, 2"]),
        (2, ["1, 2, 3", "batch, 1, time", "batch, 2, 3", "batch, 2, time"]),
        (0, ["3", "time"]),
    ],
)
def test_rows_of_a_table_are_picked(
    apply: Callable[..., ir.Model], axis: int, shapes: list[str]
) -> None:
    """A table that is the same for all rows, places the same for all channels, or both."""
    left = outcome(apply, axis, *shapes)
    assert "Gather" in left
    assert "GatherElements" not in left


@pytest.mark.parametrize(
    "shapes",
    [
        ["batch, 3", "batch, time"],  # each row has its own
        ["1, 3, 2", "batch, time, 2", "batch, 3, 2", "batch, time, 2"],
        ["1, 3, 2", "batch, time, 1", "batch, 3, 2", "batch, time, 1"],  # of two, the first
    ],
)
def test_single_entries_stay(apply: Callable[..., ir.Model], shapes: list[str]) -> None:
    """Where table and places both vary, no row is picked whole."""
    assert "GatherElements" in outcome(apply, 1, *shapes)
