"""RemoveNoOps: nodes that give back what they take go, those that only look so stay."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from intaglio.passes.exact.remove_no_ops import RemoveNoOps

GRAPH = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 2] x) => (float[batch, time, 2] y)
    <float one = {1.0}, float zero = {0.0}, float two = {2.0},
     int64[1] first = {0}, int64[1] second = {1}, int64[1] third = {2},
     int64[1] end = {9223372036854775807}, int64[3] shape = {0, 0, 2}, float[%s] h>
    { %s  y = Neg (h) }
"""


def outcome(apply: Callable[..., ir.Model], node: str, shape: str = "batch, time, 2") -> bool:
    """Whether the node that makes `h` was dropped; the check runs both graphs."""
    model = apply(GRAPH % (shape, node), RemoveNoOps())
    return [entry.op_type for entry in model.graph] == ["Neg"]


@pytest.mark.parametrize(
    "node",
    [
        "h = Identity (x)",
        "h = Slice (x, first, end, second)",
        "h = Slice (x, first, third, third, second)",
        "h = Mul (one, x)",
        "h = Div (x, one)",
        "h = Add (x, zero)",
        "h = Sub (x, zero)",
        "h = Transpose <perm = [0, 1, 2]> (x)",
        "h = Reshape (x, shape)",
        "h = Cast <to = 1> (x)",
    ],
)
def test_what_changes_nothing_goes(apply: Callable[..., ir.Model], node: str) -> None:
    assert outcome(apply, node)


@pytest.mark.parametrize(("less", "gone"), [("zero_tokens", True), ("second", False)])
def test_a_slice_as_long_as_its_input_goes(
    apply: Callable[..., ir.Model], less: str, gone: bool
) -> None:
    """Its end need not be constant: it starts at the first entry, and no entry is missing."""
    node = f"""
        zero_tokens = Sub (first, first)  length = Shape <start = 1, end = 2> (x)
        end_of_it = Sub (length, {less})  h = Slice (x, first, end_of_it, second)
    """
    model = apply(GRAPH % ("batch, time, 2" if gone else "batch, less, 2", node), RemoveNoOps())

    assert ("Slice" not in [entry.op_type for entry in model.graph]) is gone


@pytest.mark.parametrize(
    "node",
    [
        "h = Mul (x, two)",
        "h = Div (one, x)",
        "h = Sub (zero, x)",
        "h = Slice (x, first, second, third)",
    ],
)
def test_what_changes_a_value_stays(apply: Callable[..., ir.Model], node: str) -> None:
    shape = "batch, time, 1" if "Slice" in node else "batch, time, 2"
    assert not outcome(apply, node, shape)


@pytest.mark.parametrize(("repeated", "wide", "goes"), [
    ("batch, 1, 2", "batch, time, 2", True),
    ("2", "batch, time, 2", True),
    ("1, 1, 2", "batch, time, 2", True),
    ("batch, 1, 2", "batch, 1, 2", False),
])  # fmt: skip
def test_an_operator_repeats_its_operand_by_itself(
    apply: Callable[..., ir.Model], repeated: str, wide: str, goes: bool
) -> None:
    """An Expand goes where the other operand has its size; else the result would be smaller."""
    text = f"""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[{repeated}] x, float[{wide}] h, float[batch, time, 2] s)
            => (float[batch, time, 2] y)
        <float[batch, time, 2] e>
        {{
          shape = Shape (s)
          e = Expand (x, shape)
          y = Add (e, h)
        }}
    """
    model = apply(text, RemoveNoOps())
    add = model.graph.outputs[0].producer()
    assert add is not None
    assert (add.inputs[0] is model.graph.inputs[0]) == goes


def test_one_axis_is_flat_already(apply: Callable[..., ir.Model]) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[time] x) => (float[time] y)
        <int64[1] all = {-1}, float[unknown] h>
        { h = Reshape (x, all)  y = Neg (h) }
    """
    assert [node.op_type for node in apply(text, RemoveNoOps()).graph] == ["Neg"]
