"""Graphs of files that are taken over as they are."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import intaglio
from intaglio.errors import IntaglioError


def test_a_branch_that_gives_what_it_reads_is_told(tmp_path: Path) -> None:
    """The name `z` is the outer graph's as well; within the branch it is its own, and no input."""
    branch = helper.make_graph(
        [helper.make_node("Identity", ["z"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Abs", ["x"], ["z"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(
        nodes,
        "outer",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "model.onnx")

    with pytest.raises(IntaglioError, match=r"model\.onnx"):
        intaglio.export(tmp_path / "model.onnx", tmp_path / "bundle", whole=True)


def test_a_graph_with_time_that_does_not_run_is_told(tmp_path: Path) -> None:
    """It is run first to see whether it is stepped through time."""
    text = """
        <ir_version: 10, opset_import: ["" : 7]>
        g (float[batch, time, 4] x) => (float[batch, time, 4] y) {
            axis = Constant <value = int64 {1}> ()
            y = CumProd (x, axis)
        }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    with pytest.raises(IntaglioError, match="CumProd"):
        intaglio.export(tmp_path / "model.onnx", tmp_path / "bundle")
