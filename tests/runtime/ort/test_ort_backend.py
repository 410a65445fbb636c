"""A step of one token of one row runs on an engine that knows so from the start."""

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import parser

from intaglio.graph_keys import ONE_STEP
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.graph_entry import MAIN, GraphEntry, TargetEntry, TensorSpec
from intaglio.runtime.manifest import FILE_NAME, FileRecord, Manifest
from intaglio.runtime.ort import ort_backend

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 4] x) => (float[batch, time, 4] y)
      <float[2, 4] two = {1, 2, 3, 4, 5, 6, 7, 8}>
    {
      y = COMPUTED
    }
"""
ANY = "Neg (x)"
TWO = "Neg (x) turned = Transpose <perm = [0, 2, 1]> (x) z = MatMul (turned, two)"


def bundle(folder: Path, computed: str, *, marked: bool) -> Path:
    """A graph that computes `y` of tokens."""
    model = parser.parse_model(TEXT.replace("COMPUTED", computed))
    if marked:
        model.metadata_props.add(key=ONE_STEP, value="1")
    (folder / "ort").mkdir(parents=True)
    onnx.save(model, folder / "ort/model.onnx")
    free = ("batch", "time", 4)
    entry = GraphEntry(
        inputs=(TensorSpec("x", "float32", free),),
        outputs=(TensorSpec("y", "float32", free),),
        states=(),
        past_length=False,
        targets={"ort": TargetEntry(path="ort/model.onnx", opset=24, data=())},
        passes=(),
    )
    Manifest(
        source={"name": "by-hand.pt", "sha256": "0" * 64, "format": "by hand"},
        graphs={MAIN: entry},
        files={"ort/model.onnx": FileRecord.of(folder / "ort/model.onnx")},
    ).save(folder / FILE_NAME)
    return folder


@pytest.mark.parametrize(
    ("marked", "computed", "apart"),
    [
        (True, ANY, True),
        (False, ANY, False),
        (True, TWO, False),  # which takes no single token
    ],
)
def test_one_token_of_one_row_has_an_engine_where_that_gains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, marked: bool, computed: str, apart: bool
) -> None:
    """Its sizes are fixed; other calls, and graphs that have no such call, run on the other."""
    monkeypatch.setattr(ort_backend, "OrtStep", lambda engine, *_: engine)
    graph = Bundle.open(bundle(tmp_path / "bundle", computed, marked=marked)).graph()
    backend = ort_backend.open_ort(graph, "ort", 1)
    carried: Any = None

    def sizes(batch: int, time: int) -> list[Any]:
        engine: Any = backend.bind({"batch": batch, "time": time}, carried)
        found: list[Any] = engine.get_inputs()[0].shape
        return found

    assert sizes(1, 1) == ([1, 1, 4] if apart else ["batch", "time", 4])
    assert sizes(2, 1) == sizes(1, 2) == ["batch", "time", 4]
