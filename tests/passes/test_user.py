"""Passes of users: of this IR or of onnx-graphsurgeon's, held to what exact passes promise."""

import textwrap
from pathlib import Path

import onnx_ir as ir
import pytest

from intaglio.errors import CheckError, PassError
from intaglio.graph_keys import MODULE
from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.graph import dims
from intaglio.passes.user import pass_of

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 2] x) => (float[batch, time, 2] y)
    <float[2] weight = {1.0, 2.0}, float one = {1.0}, float[batch, time, 2] h>
    { h = Mul (x, weight)  y = Mul (h, one) }
"""

SURGEON = """
import numpy as np
import onnx_graphsurgeon as gs

def drop_ones(graph: gs.Graph) -> gs.Graph:
    for node in graph.nodes:
        if node.op == "Mul" and getattr(node.inputs[1], "values", None) is not None:
            if (node.inputs[1].values == 1).all():
                node.op, node.inputs = "Identity", node.inputs[:1]
    return graph.cleanup().toposort()

def double(graph: gs.Graph) -> None:
    graph.nodes[0].inputs[1].values = 2 * graph.nodes[0].inputs[1].values

def nothing(graph: gs.Graph) -> gs.Graph:
    return graph

def forget(graph: gs.Graph):
    return 3

def stumble(graph: "gs.Graph"):
    raise ValueError("no such tensor")
"""


def model() -> ir.Model:
    made = ir.from_onnx_text(TEXT)
    for index, node in enumerate(made.graph):
        node.name = f"node_{index}"
        node.metadata_props[MODULE] = "layers.0"
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "surgery.py"
    path.write_text(textwrap.dedent(SURGEON))
    return path


def run(graph: ir.Model, spec: str) -> pipeline.PassRecord:
    [record] = pipeline.run(graph, [pipeline.parse(spec, allow_code=True)], Context(), check=True)
    return record


def test_a_pass_of_onnx_graphsurgeon_runs_and_is_recorded(file: Path) -> None:
    """By its own name, with the hash of its file; names, module paths and shapes stay."""
    graph = model()

    record = run(graph, f"{file}:drop_ones")

    assert record.name == "surgery.py:drop_ones"
    assert set(record.result.details) == {"file", "sha256"}
    assert record.result.changed
    assert record.error == 0
    assert [node.op_type for node in graph.graph] == ["Mul", "Identity"]
    assert [node.metadata_props[MODULE] for node in graph.graph] == ["layers.0"] * 2
    assert list(graph.graph.initializers) == ["weight"]
    assert dims(graph.graph.outputs[0]) == ("batch", "time", 2)


def test_a_pass_that_does_nothing_leaves_the_graph_alone(file: Path) -> None:
    graph = model()
    before = graph.graph

    assert not run(graph, f"{file}:nothing").result.changed
    assert graph.graph is before


def test_a_pass_that_changes_the_result_is_caught(file: Path) -> None:
    """It calls itself by the name that the user typed."""
    with pytest.raises(CheckError, match=r"the pass 'surgery\.py:double' changed 'y'"):
        run(model(), f"{file}:double")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("forget", "returned int; it should return the graph"),
        ("stumble", "the pass 'surgery.py:stumble' raised ValueError: no such tensor"),
        ("absent", "defines no such function"),
    ],
)
def test_a_faulty_pass_is_told(file: Path, spec: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        run(model(), f"{file}:{spec}")


def test_a_file_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import absent_package")

    with pytest.raises(PassError, match="No module named 'absent_package'"):
        run(model(), f"{tmp_path / 'broken.py'}:f")


def test_a_function_of_this_ir_needs_no_annotation() -> None:
    """It rewrites in place and says whether it did."""

    def rename(graph) -> bool:  # type: ignore[no-untyped-def]  # noqa: ANN001
        graph.graph.node(0).name = "seen"
        return True

    graph = model()
    assert pass_of(rename, "rename").run(graph, Context()).changed
    assert graph.graph.node(0).name == "seen"
