"""A first token that is computed otherwise, and later ones, become one choice by position."""

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.passes import evaluate, pipeline
from intaglio.passes.base import Context
from intaglio.passes.exact.peel_first_token import PeelFirstToken

HEAD = """<ir_version: 10, opset_import: ["" : 27]>
graph (float[batch, time, 3] x) => (float[batch, time, 3] y)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] end = {9223372036854775807},
 int64[1] less = {-1}, float k = {0.97}, int64 along = {1}>
{
    now = Slice (x, one, end, one)
    before = Slice (x, zero, less, one)
    first = Slice (x, zero, one, one)
"""
PRE_EMPHASIS = "scaled = Mul (k, before) later = Sub (now, scaled) y = Concat <axis = 1> "


def peeled(body: str, *, changed: bool) -> None:
    model = ir.from_onnx_text(HEAD + body + "}")
    shapes: dict[str, int | str] = {
        "now": "time - 1",
        "before": "time - 1",
        "first": 1,
        "scaled": "time - 1",
    }
    for node in model.graph:
        for value in node.outputs:
            length: int | str = shapes.get(
                str(value.name), "time - 1" if value.name != "y" else "time"
            )
            value.shape = ir.Shape(["batch", 1 if value.name == "head" else length, 3])
            if value.name in ("place", "one_token"):
                value.shape = ir.Shape([] if value.name == "place" else ["batch", 3])
                continue
            value.type = ir.TensorType(ir.DataType.FLOAT)
    x = np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float32)
    wanted = evaluate.run(model, {"x": x})["y"]
    (record,) = pipeline.run(model, [PeelFirstToken()], Context(), check=True)
    assert record.result.changed is changed
    np.testing.assert_allclose(evaluate.run(model, {"x": x})["y"], wanted, atol=1e-6)
    assert ("Where" in [node.op_type for node in model.graph]) is changed


@pytest.mark.parametrize(
    "body",
    [
        PRE_EMPHASIS + "(first, later)",
        "head = Mul (first, k) " + PRE_EMPHASIS + "(head, later)",
        "place = Constant <value_int = 0> () one_token = Gather <axis = 1> (x, place) "
        "head = Unsqueeze (one_token, one) " + PRE_EMPHASIS + "(head, later)",
    ],
    ids=["as it is", "scaled", "selected"],
)
def test_a_first_token_of_its_own(body: str) -> None:
    peeled(body, changed=True)


@pytest.mark.parametrize(
    "later",
    ["diff = Sub (now, before) later = CumSum (diff, along)",
     "later = Softmax <axis = 1> (now)"],
    ids=["a sum over tokens", "a softmax over tokens"],
)  # fmt: skip
def test_what_combines_later_tokens_stays(later: str) -> None:
    peeled(later + " y = Concat <axis = 1> (first, later)", changed=False)


@pytest.mark.parametrize(
    "body",
    ["longer = Concat <axis = 1> (first, x) y = Slice (longer, zero, less, one)",
     "longer = Concat <axis = 1> (first, x) y = Slice (longer, one, end, one)",
     "longer = Pad (x, front, k) y = Slice (longer, zero, less, one)"],
    ids=["all but the last", "all but the first", "a constant in front"],
)  # fmt: skip
def test_what_is_cut_after_a_token_was_put_in_front(body: str) -> None:
    """As torch.diff does with `prepend`."""
    pads = "front = Constant <value_ints = [0, 1, 0, 0, 0, 0]> () "
    model = ir.from_onnx_text(f"{HEAD}{pads}{body}}}")
    shapes: dict[str, int | str] = {"longer": "time + 1", "first": 1, "y": "time"}
    for node in model.graph:
        for value in node.outputs:
            if value.name != "front":
                length = shapes.get(str(value.name), "time - 1")
                value.shape = ir.Shape(["batch", length, 3])
                value.type = ir.TensorType(ir.DataType.FLOAT)
    x = np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float32)
    wanted = evaluate.run(model, {"x": x})["y"]
    (record,) = pipeline.run(model, [PeelFirstToken()], Context(), check=True)

    assert record.result.changed
    assert all("time + 1" not in map(str, node.outputs[0].shape or ()) for node in model.graph
               if node.outputs[0].uses())  # fmt: skip
    np.testing.assert_array_equal(evaluate.run(model, {"x": x})["y"], wanted)


@pytest.mark.parametrize("fill", ["k", ""], ids=["a number", "zeros"])
def test_a_constant_before_later_tokens(fill: str) -> None:
    pads = "front = Constant <value_ints = [0, 1, 0, 0, 0, 0]> () "
    body = f"{pads}later = Sub (now, before) y = Pad (later, front{', ' if fill else ''}{fill})"
    peeled(body, changed=True)


def test_another_token_in_front_stays() -> None:
    body = "head = Slice (x, one, two, one) " + PRE_EMPHASIS + "(head, later)"
    peeled(body, changed=False)
