"""Lowered graphs that passes made are held to their portable forms, on what was recorded."""

import onnx_ir as ir

from intaglio.exporter.proving.derived import differing

HEAD = '<ir_version: 10, opset_import: ["" : 24]> g '
RECORD = HEAD + "(float[1, 4] x) => (int64[1, 1] places) { places = ArgMax <axis = 1> (x) }"
REPLAY = (
    HEAD
    + """(float[batch, 4] x, int64[1, 1] places) => (float[batch, 1] y) {
    one = Constant <value_ints = [0]> ()
    place = Squeeze (places, one)
    y = Gather <axis = 1> (x, place)
}"""
)


def test_what_a_graph_gives_another_takes() -> None:
    """Places that were drawn at random would lie beyond the entries."""
    record, replay = ir.from_onnx_text(RECORD), ir.from_onnx_text(REPLAY)
    assert differing({"record": (record, None), "replay": (replay, replay.clone())}) == {}


def test_a_form_that_gives_something_else_is_named() -> None:
    record, replay = ir.from_onnx_text(RECORD), ir.from_onnx_text(REPLAY)
    wrong = ir.from_onnx_text(REPLAY.replace("(x, place)", "(x, one)"))
    found = differing({"record": (record, record.clone()), "replay": (replay, wrong)})
    assert list(found) == ["replay"]
    assert found["replay"].startswith("'y' is off by")
