"""CutLead: what is put before a sequence and cut off again is left out."""

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.exact.cut_lead import CutLead

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 1] x) => (float[batch, time, time] y)
      <float[batch, led, 1] z, float[batch, led, led] w, float[batch, led, led] t,
       float[batch, led, led] d, float[batch, time, led] c,
       int64[6] pads = {0, 1, 0, 0, 0, 0}, int64[1] zero = {0}, int64[1] one = {1},
       int64[1] two = {2}, int64[1] end = {9223372036854775807}>
    {
      size = Shape (x)
      tokens = Slice (size, one, two)
      more = Add (tokens, one)
      wide = Concat <axis = 0> (one, one, more)
      z = Pad (x, pads)
      w = Expand (z, wide)
      t = Transpose <perm = [0, 2, 1]> (w)
      d = Sub (w, t)
      c = Slice (d, one, end, one, one)
      y = Slice (c, one, end, two, one)
    }
"""


def led(text: str) -> ir.Model:
    """The graph, in which `led` is one entry more than tokens."""
    model = ir.from_onnx_text(text)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None:
                dims = ["time + 1" if str(dim) == "led" else dim for dim in value.shape]
                value.shape = ir.Shape(dims)
    return model


def test_differences_of_led_sums_are_those_of_the_sums() -> None:
    model = led(TEXT)
    x = np.random.default_rng(0).normal(size=(2, 5, 1)).astype(np.float32)
    wanted = evaluate.run(model, {"x": x})["y"]

    assert CutLead().run(model, Context()).changed
    final = model.graph.outputs[0].producer()
    assert final is not None
    assert final.op_type == "Sub"
    assert final.inputs[0] is model.graph.inputs[0]
    np.testing.assert_array_equal(evaluate.run(model, {"x": x})["y"], wanted)


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ("{0, 1, 0, 0, 0, 0}", "{0, 0, 0, 0, 1, 0}"),  # put behind
        ("d = Sub (w, t)", "d = MatMul (w, t)"),
        ("Slice (d, one, end, one, one)", "Slice (d, zero, tokens, one, one)"),  # the last cut
        ("t = Transpose <perm = [0, 2, 1]> (w)", "t = Softmax <axis = 1> (w)"),
    ],
)
def test_a_cut_of_anything_else_stays(part: str, instead: str) -> None:
    model = led(TEXT.replace(part, instead))
    CutLead().run(model, Context())
    kept, pending = set[str](), [model.graph.outputs[0].producer()]
    while pending:
        node = pending.pop()
        if node is not None:
            kept.add(node.op_type)
            pending += [value.producer() for value in node.inputs if value is not None]
    assert {"Pad", "Slice"} <= kept
