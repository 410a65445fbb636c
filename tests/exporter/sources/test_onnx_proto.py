"""ONNX files that are not what they claim are refused before memory or time is spent on them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from intaglio.errors import SourceError
from intaglio.exporter.sources.load import load_source

TEXT = """
    <ir_version: 10, opset_import: ["" : 18, "f" : 1]>
    g (float[batch, time, 3] x) => (float[batch, time, 3] y) { y = Tanh (x) }
"""
Change = Callable[[onnx.ModelProto], None]


def functions(model: onnx.ModelProto, depth: int = 60, *, circle: bool = False) -> None:
    """Each of `depth` functions calls the one below twice: together 2 ** depth nodes."""
    for level in range(depth):
        below = f"f{(level - 1) % depth}" if level or circle else "Tanh"
        domain = "" if below == "Tanh" else "f"
        nodes = [helper.make_node(below, [a], [b], domain=domain) for a, b in ("ab", "bc")]
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
        made = helper.make_function("f", f"f{level}", ["a"], ["c"], nodes, imports)
        model.functions.append(made)
    model.graph.node[0].op_type, model.graph.node[0].domain = f"f{depth - 1}", "f"


def circle(model: onnx.ModelProto) -> None:
    functions(model, 3, circle=True)


def uncalled(model: onnx.ModelProto) -> None:
    """One of another domain parts the graph from those below it, which are written out, too."""
    functions(model, 60)
    model.functions[57].domain = "g"


def by_its_long_name(model: onnx.ModelProto) -> None:
    """The standard's domain, which has two names."""
    functions(model, 60)
    for function in model.functions:
        function.domain = "ai.onnx"
        for node in function.node:
            node.domain = ""
    model.graph.node[0].domain = ""


def hides(model: onnx.ModelProto) -> None:
    """A branch that reads a value of the graph under the name of its own result."""
    value, own = (helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "yz")
    branch = helper.make_graph([helper.make_node("Identity", ["z"], ["z"])], "b", [], [own])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "c"))
    model.graph.node[0].output[0] = "z"
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)
    model.graph.output[0].CopyFrom(value)


def two_alike(model: onnx.ModelProto) -> None:
    functions(model, 3)
    model.functions.append(model.functions[1])


def branches(model: onnx.ModelProto) -> None:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "b", [], [value])
    for _ in range(17):
        node = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "b", [], [value])
        if len(graph.node[0].attribute[0].g.node[0].attribute) and graph.ByteSize() > 1 << 18:
            break
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "c"))
    model.graph.node[0].CopyFrom(
        helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
    )


def weight(**said: object) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(TensorProto(name="w", **said))  # type: ignore[arg-type]

    return change


def mistyped(model: onnx.ModelProto) -> None:
    """ONNX Runtime would end the process."""
    model.graph.node[0].op_type = "Softmax"
    model.graph.node[0].attribute.add(name="axis", type=9)


def twice(model: onnx.ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


def below_zero(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -3


def too_large(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**28


def nothing_gives(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (functions, "once its functions are written out"),
        (circle, "calls itself"),
        (uncalled, "once its functions are written out"),
        (by_its_long_name, "once its functions are written out"),
        (hides, "takes 'z' from around it"),
        (two_alike, "holds the function 'f1' more than once"),
        (branches, "nests loops and branches"),
        (weight(data_type=1, dims=[2**40]), r"FLOAT \[1099511627776\], which is not"),
        (weight(data_type=1, dims=[-1], raw_data=bytes(4)), "which is not what it holds"),
        (weight(data_type=99, dims=[1]), "which is none of ONNX"),
        (weight(data_type=8, dims=[2], string_data=[b"a"]), "which is not what it holds"),
        (mistyped, "'axis' of the node 'Softmax' is of another type"),
        (twice, "2 inputs of the graph are called 'x'"),
        (below_zero, r"has the sizes \[.*-3.*\]"),
        (too_large, "Examples of inputs are drawn"),
        (nothing_gives, "takes the value 'nowhere', which nothing gives"),
    ],
)
def test_a_file_is_held_to_what_it_claims(change: Change, said: str, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(TEXT)
    change(model)
    onnx.save(model, tmp_path / "g.onnx")

    with pytest.raises(SourceError, match=said):
        load_source(tmp_path / "g.onnx")


def test_a_sparse_weight_is_written_out(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(TEXT)
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [5.0, 7.0])
    places = helper.make_tensor("i", TensorProto.INT64, [2, 1], [0, 2])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [3]))
    model.graph.node[0].CopyFrom(helper.make_node("Add", ["x", "w"], ["y"]))
    onnx.save(model, tmp_path / "g.onnx")

    body = load_source(tmp_path / "g.onnx").body

    assert isinstance(body, ir.Model)
    weight = body.graph.initializers["w"].const_value
    assert weight is not None
    found = weight.numpy()
    np.testing.assert_array_equal(found, [5, 0, 7])
    del values.float_data[:], places.int64_data[:]
    places.int64_data.extend([0, 9])
    values.float_data.extend([5.0, 7.0])
    model.graph.sparse_initializer[0].CopyFrom(helper.make_sparse_tensor(values, places, [3]))
    onnx.save(model, tmp_path / "g.onnx")
    with pytest.raises(SourceError, match="cannot be written out"):
        load_source(tmp_path / "g.onnx")
