"""What a file fixes is free where running the graph proves it; else it stays, and that is said."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.runtime import Session

TEXT = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[%s] x) => (float[%s] y)
    <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9.5}, int64[3] s = {2, 6, 3}, int64 one = {1}>
    { %s }
"""


def write(folder: Path, nodes: str, shape: str = "2, 6, 3") -> Path:
    onnx.save(onnx.parser.parse_model(TEXT % (shape, shape, nodes)), folder / "g.onnx")
    return folder / "g.onnx"


def load(folder: Path, nodes: str, shape: str = "2, 6, 3") -> Source:
    return load_source(write(folder, nodes, shape))


def test_rows_and_tokens_that_meet_no_others_are_free(tmp_path: Path) -> None:
    source = load(tmp_path, "a = MatMul (x, w) b = CumSum (a, one) y = Tanh (b)")

    assert source.dynamic == {"x": {0: "batch", 1: "time"}}
    assert "each row and each token comes out as in its own" in " ".join(source.notes)


@pytest.mark.parametrize(
    ("nodes", "dynamic", "said"),
    [
        ("a = Softmax <axis = 1> (x) y = Mul (a, x)", {0: "batch"}, "so batch is free"),
        ("a = Flatten <axis = 1> (x) b = Softmax (a) y = Reshape (b, s)", {}, "depend on that"),
        ("a = Softmax <axis = 0> (x) y = CumSum (a, one)", {1: "time"}, "so time is free"),
        ("a = Reshape (x, s) y = Softmax <axis = 1> (a)", {}, "depend on that"),
    ],
)
def test_what_depends_on_the_sizes_stays(
    nodes: str, dynamic: dict[int, str], said: str, tmp_path: Path
) -> None:
    """Attention to later tokens, rows that meet, shapes in constants."""
    source = load(tmp_path, nodes)

    assert source.dynamic == {"x": dynamic}
    assert source.whole or "time" in dynamic.values()
    assert said in " ".join(source.notes)


def test_pictures_have_free_rows_and_no_time(tmp_path: Path) -> None:
    assert load(tmp_path, "y = Tanh (x)", "1, 3, 4, 4").dynamic == {"x": {0: "batch"}}


def test_a_graph_whose_axes_were_freed_steps(tmp_path: Path) -> None:
    """Token by token as the file computes them at once."""
    path = write(tmp_path, "a = MatMul (x, w) b = CumSum (a, one) y = Tanh (b)")
    export(path, tmp_path / "bundle", verify=False)
    session = Session.load(tmp_path / "bundle")
    x = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)

    found = np.concatenate([session.step({"x": x[:, t : t + 1]})["y"] for t in range(6)], 1)

    (wanted,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
