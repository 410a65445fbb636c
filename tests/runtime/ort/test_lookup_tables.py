"""Look-up tables take steps of one token, and no product that has to be finer than they are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from intaglio.errors import InputError
from intaglio.runtime.graph_entry import MAIN, GraphEntry, TargetEntry, TensorSpec
from intaglio.runtime.manifest import FILE_NAME, FileRecord, Manifest
from intaglio.runtime.session import Session

SIZE, GROUP = 256, 32
FAST = {"accuracy": "fast", "weights": ["2 bits, groups of 32"]}


def lowered(details: dict[str, Any]) -> dict[str, Any]:
    """The record of the pass that chose the kernels."""
    names = {"name": "ort-low-bit", "changed": True, "nodes": [1, 1], "error": None, "notes": []}
    return {**names, "details": details}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """One product with weights of 2 bits."""
    random = np.random.default_rng(0)
    packed = random.integers(0, 256, (SIZE, SIZE // GROUP, GROUP // 4)).astype(np.uint8)
    scales = random.uniform(0.5, 1.5, SIZE * SIZE // GROUP).astype(np.float32)
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", "time", SIZE])
        for name in ("x", "y")
    ]
    node = helper.make_node(
        *("MatMulNBits", ["x", "w", "s"], ["y"]), domain="com.microsoft",
        K=SIZE, N=SIZE, bits=2, block_size=GROUP, accuracy_level=4,
    )  # fmt: skip
    weights = [numpy_helper.from_array(packed, "w"), numpy_helper.from_array(scales, "s")]
    graph = helper.make_graph([node], "step", values[:1], values[1:], weights)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    (tmp_path / "ort").mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=11), tmp_path / "ort/model.onnx"
    )
    entry = GraphEntry(
        inputs=(TensorSpec("x", "float32", ("batch", "time", SIZE)),),
        outputs=(TensorSpec("y", "float32", ("batch", "time", SIZE)),),
        states=(),
        past_length=False,
        targets={"ort": TargetEntry(path="ort/model.onnx", opset=24, data=())},
        passes=(lowered(FAST),),
    )
    Manifest(
        source={"name": "by-hand.pt", "sha256": "0" * 64, "format": "by hand"},
        graphs={MAIN: entry},
        files={"ort/model.onnx": FileRecord.of(tmp_path / "ort/model.onnx")},
    ).save(tmp_path / FILE_NAME)
    return tmp_path


def test_tables_take_one_token_of_one_row_alone(bundle: Path) -> None:
    """There the result differs by rounding; elsewhere it is the plain kernel's, bit for bit."""
    plain, tables = (Session.load(bundle, threads=1, tables=use) for use in (False, True))
    x = np.random.default_rng(1).standard_normal((2, 3, SIZE)).astype(np.float32)
    for part in (x, x[:1], x[:, :1]):
        found, expected = (session.fork().step({"x": part})["y"] for session in (tables, plain))
        assert (found == expected).all()
    found, expected = (session.fork().step({"x": x[:1, :1]})["y"] for session in (tables, plain))

    assert 0 < np.abs(found - expected).max() < 2e-2 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ({"accuracy": "fine", "weights": FAST["weights"]}, "products that do not"),
        ({"accuracy": "mixed", "weights": FAST["weights"]}, "products that do not"),
        ({"accuracy": "fast", "weights": ["4 bits, groups of 32"]}, "this bundle has none"),
        ({}, "this bundle has none"),
    ],
)
def test_what_tables_cannot_serve_is_refused(
    bundle: Path, details: dict[str, Any], message: str
) -> None:
    """They would round what an export was asked not to round."""
    manifest = Manifest.load(bundle / FILE_NAME)
    entry = replace(manifest.main, passes=(lowered(details),))
    replace(manifest, graphs={MAIN: entry}).save(bundle / FILE_NAME)

    with pytest.raises(InputError, match=message):
        Session.load(bundle, tables=True)
