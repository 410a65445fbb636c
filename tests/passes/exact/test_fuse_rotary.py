"""FuseRotary: rotations of halves become one node, and nothing else does."""

import onnx_ir as ir
import pytest

from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.exact.fuse_rotary import FuseRotary

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, 2, time, 8] x, float[batch, 1, time, 4] cos, float[batch, 1, time, 4] sin)
      => (float[batch, 2, time, 8] y)
    {
      a, b = Split <axis = -1, num_outputs = 2> (x)
      ac = Mul (%s)
      bs = Mul (b, sin)
      bc = Mul (cos, b)
      as = Mul (a, %s)
      u = Sub (%s)
      w = Add (%s)
      y = Concat <axis = -1> (%s)
    }
"""
ROTATION = ("a, cos", "sin", "ac, bs", "bc, as", "u, w")


def shaped(text: str) -> ir.Model:
    """The graph with the shapes that shape inference would give."""
    model = ir.from_onnx_text(text)
    for node in model.graph:
        for value in node.outputs:
            if value.name != "y":
                value.shape = ir.Shape(["batch", 2, "time", 4])
                value.type = ir.TensorType(ir.DataType.FLOAT)
    return model


def outcome(text: str) -> tuple[bool, list[str]]:
    model = shaped(text)
    [record] = pipeline.run(model, [FuseRotary()], Context(), check=True)
    assert not FuseRotary().run(model, Context()).changed
    return record.result.changed, [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    "parts", [ROTATION, ("cos, a", "sin", "ac, bs", "as, bc", "u, w")], ids=["plain", "swapped"]
)
def test_a_rotation_of_halves_fuses(parts: tuple[str, ...]) -> None:
    """In either order of factors and summands; the check runs both graphs."""
    changed, ops = outcome(TEXT % parts)
    assert changed
    assert "RotaryEmbedding" in ops
    assert "Concat" not in ops


@pytest.mark.parametrize(
    "parts",
    [
        ("a, sin", "sin", "ac, bs", "bc, as", "u, w"),
        ("a, cos", "cos", "ac, bs", "bc, as", "u, w"),
        ("a, cos", "sin", "bs, ac", "bc, as", "u, w"),
        ("a, cos", "sin", "ac, bs", "bc, as", "w, u"),
        ("b, cos", "sin", "ac, bs", "bc, as", "u, w"),
    ],
)
def test_what_is_no_rotation_stays(parts: tuple[str, ...]) -> None:
    """One factor, order or half that differs is another function."""
    assert outcome(TEXT % parts)[0] is False


def test_halves_of_another_axis_stay() -> None:
    """Even and odd heads are no halves of a head."""
    text = (TEXT % ROTATION).replace("axis = -1, num", "axis = 1, num")
    model = shaped(text.replace("[batch, 2, time, 8] x", "[batch, 4, time, 4] x"))
    assert not FuseRotary().run(model, Context()).changed
