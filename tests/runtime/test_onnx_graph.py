"""Graphs are read as the package onnx reads them, and damaged ones are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intaglio.errors import BundleError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.manifest import FileRecord, Manifest
from intaglio.runtime.onnx_graph import Tensor, parse_graph, read_graph
from intaglio.runtime.protobuf import DamagedError, fields, varints

MakeBundle = Callable[..., Path]


@pytest.mark.parametrize("external", [False, True])
def test_a_graph_is_read_as_onnx_reads_it(make_bundle: MakeBundle, *, external: bool) -> None:
    """Names, operators with their domains, modules, attributes, and every value of the weights."""
    bundle = Bundle.open(make_bundle(external=external))
    expected = onnx.load(bundle.root / "ort/model.onnx", load_external_data=False).graph
    found = read_graph(bundle.graph(), "ort")

    assert len(found.nodes) == len(expected.node)
    for node, proto in zip(found.nodes, expected.node, strict=True):
        domain = f"{proto.domain}::" if proto.domain else ""
        assert (node.name, node.op) == (proto.name, f"{domain}{proto.op_type}")
        assert (node.inputs, node.outputs) == (tuple(proto.input), tuple(proto.output))
        assert node.module == proto.metadata_props[0].value
        integers = {a.name: a.i for a in proto.attribute if a.type == onnx.AttributeProto.INT}
        assert node.integers == integers
    assert list(found.tensors) == [tensor.name for tensor in expected.initializer]
    for proto in expected.initializer:
        array = numpy_helper.to_array(proto, str(bundle.root))
        values = found.tensors[proto.name].values(bundle)
        assert values is not None
        assert values.dtype == array.dtype
        np.testing.assert_array_equal(values, array)
        assert found.tensors[proto.name].nbytes == array.nbytes


def test_types_of_values_are_read_as_far_as_they_are_told() -> None:
    """Inputs, outputs and what is between: symbols, numbers, and what is no tensor."""
    info = helper.make_tensor_value_info
    inputs = [info("x", TensorProto.FLOAT16, ["batch", None, 3]), info("s", TensorProto.INT64, [])]
    output, inner = info("y", TensorProto.BOOL, ["past + time"]), info("z", TensorProto.INT4, [7])
    sequence = helper.make_value_info(
        "q", helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
    )
    graph = helper.make_graph([], "g", inputs, [output], [], value_info=[inner, sequence])
    found = parse_graph(helper.make_model(graph).SerializeToString())

    assert {name: (value.bits, value.shape) for name, value in found.values.items()} == {
        "x": (16, ("batch", "", 3)),
        "s": (64, ()),
        "y": (8, ("past + time",)),
        "z": (4, (7,)),
        "q": (0, ()),
    }
    assert found.outputs == {"y"}


def one_tensor(proto: onnx.TensorProto) -> Tensor:
    graph = helper.make_graph([], "g", [], [], [proto])
    return parse_graph(helper.make_model(graph).SerializeToString()).tensors[proto.name]


def test_bfloat16_is_widened(make_bundle: MakeBundle) -> None:
    raw = np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16
    content = raw.astype(np.uint16).tobytes()
    tensor = one_tensor(helper.make_tensor("w", TensorProto.BFLOAT16, [2], content, raw=True))
    values = tensor.values(Bundle.open(make_bundle()))

    assert values is not None
    assert values.tolist() == [1.5, -2.0]
    assert (tensor.nbytes, tensor.floats) == (4, True)


def test_elements_of_few_bits_share_bytes(make_bundle: MakeBundle) -> None:
    """There is no such type in numpy, so only their bytes can be had."""
    proto = helper.make_tensor("w", TensorProto.INT4, [3], bytes([0x21, 0x03]), raw=True)
    bundle, tensor = Bundle.open(make_bundle()), one_tensor(proto)
    content = tensor.content(bundle)

    assert (tensor.nbytes, tensor.floats, tensor.values(bundle)) == (2, False, None)
    assert content is not None
    assert content.tobytes() == bytes([0x21, 0x03])


def test_numbers_spelled_out_have_no_bytes(make_bundle: MakeBundle) -> None:
    tensor = one_tensor(helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0]))

    assert (tensor.shape, tensor.nbytes) == ((2,), 8)
    assert tensor.values(Bundle.open(make_bundle())) is None


def test_nodes_of_a_subgraph_follow_the_node_that_holds_it() -> None:
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["y"], name="inner")], "b", [], [])
    outer = helper.make_node("If", ["c"], ["z"], name="outer", then_branch=inner, else_branch=inner)
    after = helper.make_node("Abs", ["z"], ["w"], name="after")
    model = helper.make_model(helper.make_graph([outer, after], "g", [], []))
    names = [node.name for node in parse_graph(model.SerializeToString()).nodes]

    assert names == ["outer", "inner", "inner", "after"]


def test_no_cut_of_a_file_ends_in_anything_but_the_error_meant_for_it(
    make_bundle: MakeBundle,
) -> None:
    content = (make_bundle("recurrent") / "ort/model.onnx").read_bytes()
    refused = 0
    for end in range(0, len(content), 97):
        try:
            parse_graph(content[:end])
        except DamagedError:
            refused += 1

    assert refused


@pytest.mark.parametrize("message", [b"\x08", b"\x08" + b"\xff" * 11, b"\x0a\x05ab", b"\x0b"])
def test_what_is_no_message_is_refused(message: bytes) -> None:
    """A number that does not end, or is too long; a field beyond the end; an unknown type."""
    with pytest.raises(DamagedError):
        list(fields(memoryview(message)))


def test_repeated_numbers_come_packed_or_one_by_one() -> None:
    assert list(varints(memoryview(b"\x01\xac\x02"))) == [1, 300]
    assert list(varints(7)) == [7]


def test_a_file_that_is_no_graph_is_named(make_bundle: MakeBundle) -> None:
    """Its hash may well be the manifest's: that vouches for no content."""
    root = make_bundle("conv")
    path = root / "ort/model.onnx"
    path.write_bytes(b"\x3a\x7f")
    manifest = Manifest.load(root / "manifest.json")
    files = {**manifest.files, "ort/model.onnx": FileRecord.of(path)}
    Manifest(**{**vars(manifest), "files": files}).save(root / "manifest.json")

    with pytest.raises(BundleError, match=r"ort/model\.onnx is no ONNX graph: .*Export"):
        read_graph(Bundle.open(root).graph(), "ort")


def test_a_weight_beyond_its_file_is_refused(make_bundle: MakeBundle) -> None:
    bundle = Bundle.open(make_bundle("conv", external=True))
    tensor = next(t for t in read_graph(bundle.graph(), "ort").tensors.values() if t.location)
    (bundle.root / "model.onnx.data").write_bytes(b"short")

    with pytest.raises(BundleError, match="does not hold the weight"):
        tensor.content(bundle)
