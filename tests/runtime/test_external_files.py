"""Every place of an ONNX file where a tensor may stand tells which file it is read from."""

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from intaglio.runtime.external_files import external_files
from intaglio.runtime.protobuf import DamagedError


def at(location: str) -> onnx.TensorProto:
    """A tensor whose bytes lie in a file."""
    tensor = TensorProto(name=location, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def node(**attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["x"], **attributes)


def test_tensors_are_found_wherever_they_stand() -> None:
    """In subgraphs, attributes, lists of them, sparse ones, functions, and training's graphs."""
    sparse = onnx.SparseTensorProto(values=at("values"), indices=at("indices"), dims=[1])
    inner = helper.make_graph([node(value=at("inner"))], "g", [], [], initializer=[at("deep")])
    function = onnx.FunctionProto(name="f", node=[node(value=at("function"))])
    function.attribute_proto.append(helper.make_attribute("a", at("default")))
    graph = helper.make_graph(
        [node(body=inner), node(tensors=[at("one"), at("two")]), node(sparse_value=sparse)],
        "main",
        [],
        [],
        initializer=[at("weights"), at("weights")],
        sparse_initializer=[sparse],
    )
    model = helper.make_model(graph, functions=[function])
    model.training_info.add().algorithm.CopyFrom(
        helper.make_graph([], "t", [], [], initializer=[at("training")])
    )

    names = "deep default function indices inner one training two values weights"
    assert external_files(model.SerializeToString()) == tuple(names.split())


def test_a_graph_without_files_names_none_and_an_address_is_refused() -> None:
    """ONNX Runtime takes one name for an address in its own memory."""
    empty = helper.make_model(helper.make_graph([], "main", [], []))
    planted = helper.make_graph([], "main", [], [], initializer=[at("*/_ORT_MEM_ADDR_/*")])

    assert external_files(empty.SerializeToString()) == ()
    with pytest.raises(DamagedError, match="address in memory"):
        external_files(helper.make_model(planted).SerializeToString())
    with pytest.raises(DamagedError):
        external_files(b"\xff\xff no graph")
