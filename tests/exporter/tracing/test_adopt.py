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
