"""TrtBytes: what moves and chooses numbers of 8 bits does so in int32, and gives the same."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.lower.trt_bytes import TrtBytes

HEAD = '<ir_version: 10, opset_import: ["" : 23]> g '
PICTURE = (
    HEAD
    + """(uint8[2, 4, 3] x, float[2, 3, 4] w, bool[3, 1] c)
    => (float[2, 3, 4] y, uint8[2, 3, 4] z) {
    moved = Transpose <perm = [0, 2, 1]> (x)
    made = Cast <to = 2> (w)
    z = Where (c, moved, made)
    y = Cast <to = 1> (z)
}"""
)
SUMS = HEAD + "(uint8[3] x) => (uint8[3] z) { m = Identity (x) z = Add (m, m) }"
PLAIN = HEAD + "(uint8[3] x) => (float[3] z) { z = Cast <to = 1> (x) }"


def graph(text: str) -> ir.Model:
    """With the types that tracing notes."""
    model = ir.from_onnx_text(text)
    for node in model.graph:
        for value in node.outputs:
            if value.type is None:
                value.type = ir.TensorType(ir.DataType.UINT8)
    return model


def test_pixels_are_moved_and_chosen_in_int32() -> None:
    """Numbers beyond 255 and below 0 wrap around, as PyTorch's cast does."""
    plain, model = graph(PICTURE), graph(PICTURE)
    assert TrtBytes().run(model, Context()).changed
    assert not TrtBytes().run(model, Context()).changed
    for node in model.graph:
        kinds = {v.dtype for v in (*node.inputs, *node.outputs) if v is not None}
        assert node.op_type == "Cast" or ir.DataType.UINT8 not in kinds
    draw = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        "x": draw.integers(0, 256, (2, 4, 3), dtype=np.uint8),
        "w": (300 * draw.random((2, 3, 4)) - 20).astype(np.float32),
        "c": np.array([[True], [False], [True]]),
    }
    found, wanted = evaluate.run(model, feeds), evaluate.run(plain, feeds)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        chosen = np.broadcast_to(feeds["c"], value.shape)
        assert np.array_equal(found[name][chosen], value[chosen])
        cast = feeds["w"].astype(np.int32).astype(np.uint8)
        assert np.array_equal(found[name][~chosen], cast[~chosen])


@pytest.mark.parametrize("text", [SUMS, PLAIN])
def test_arithmetic_and_casts_at_the_door_stay(text: str) -> None:
    """What would wrap around is left to be refused by name."""
    assert not TrtBytes().run(graph(text), Context()).changed
