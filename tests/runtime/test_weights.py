"""Bits per weight, counted from what is stored: codes, scales and offsets."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from intaglio.graph_keys import MODULE
from intaglio.runtime.onnx_graph import OnnxGraph, parse_graph
from intaglio.runtime.weights import by_kind, by_module, total, weights_of

K, N, BLOCK = 64, 8, 32


def graph(*nodes: onnx.NodeProto, **arrays: object) -> OnnxGraph:
    """A graph of given nodes and initializers."""
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()]
    made = helper.make_model(helper.make_graph(list(nodes), "g", [], [], tensors))
    return parse_graph(made.SerializeToString())


def node(
    op: str, inputs: list[str], module: str, domain: str = "", **options: int
) -> onnx.NodeProto:
    made = helper.make_node(op, inputs, [f"{module}.y"], domain=domain, **options)  # type: ignore[arg-type]
    made.metadata_props.add(key=MODULE, value=module)
    return made


def matmul(bits: int, inputs: list[str], module: str = "mlp") -> onnx.NodeProto:
    options = {"K": K, "N": N, "bits": bits, "block_size": BLOCK}
    return node("MatMulNBits", inputs, module, "com.microsoft", **options)


def test_plain_weights_take_the_bits_of_their_type() -> None:
    """Shapes and indices are integers, so they are no weights."""
    held = graph(
        node("Gemm", ["x", "w", "b"], "head"),
        w=np.zeros((3, 5), np.float32),
        b=np.zeros(5, np.float16),
        shape=np.zeros(4, np.int64),
    )
    found = weights_of(held)

    assert [(w.name, w.kind, w.count, w.bytes) for w in found] == [
        ("w", "float32", 15, 60),
        ("b", "float16", 5, 10),
    ]
    assert total(found).bits == 8 * 70 / 20
    assert by_module(found)["head"].count == 20


def test_scales_and_offsets_are_bits_of_the_weights_that_they_scale() -> None:
    """4 bits, and for each 32 weights a float scale and a float zero point: 4 + 64 / 32."""
    held = graph(
        matmul(4, ["x", "codes", "scales", "zeros"]),
        codes=np.zeros((N, K // BLOCK, BLOCK // 2), np.uint8),
        scales=np.zeros(N * K // BLOCK, np.float32),
        zeros=np.zeros(N * K // BLOCK, np.float32),
    )
    [weight] = weights_of(held)

    assert (weight.kind, weight.count, weight.module) == ("4 bits, MatMulNBits", K * N, "mlp")
    assert total([weight]).bits == 6.0


def test_a_packed_weight_that_two_nodes_share_counts_once() -> None:
    arrays = {
        "codes": np.zeros((N, K // BLOCK, BLOCK // 4), np.uint8),
        "scales": np.zeros(N * K // BLOCK, np.float32),
    }
    twice = [matmul(2, ["x", "codes", "scales"], module) for module in ("embed", "head")]
    found = weights_of(graph(*twice, **arrays))

    assert [(w.module, w.count) for w in found] == [("embed", K * N)]
    assert by_kind(found)["2 bits, MatMulNBits"].bits == 3.0


def test_packed_rows_of_a_table_count_by_their_bits() -> None:
    """GatherBlockQuantized has neither K nor N: the codes tell how many there are."""
    held = graph(
        node("GatherBlockQuantized", ["codes", "ids", "scales"], "embed", "com.microsoft", bits=4),
        codes=np.zeros((10, 16), np.uint8),
        scales=np.zeros((10, 1), np.float32),
    )
    [weight] = weights_of(held)

    assert (weight.count, weight.bytes) == (320, 200)


def test_an_offset_that_another_node_adds_counts_too() -> None:
    """By its name beside the codes; a parameter that only sounds alike is a weight of its own."""
    groups = N * K // BLOCK
    codes, scales = "q.codes|k.codes.ort.data", "q.scale|k.scale.ort.scales"
    arrays = {
        codes: np.zeros((N, K // BLOCK, BLOCK // 2), np.uint8),
        scales: np.zeros(groups, np.float32),
        "q.offset|k.offset.ort.offset": np.zeros(groups, np.float32),
        "norm.scale": np.zeros(3, np.float32),
    }
    found = weights_of(graph(matmul(4, ["x", codes, scales]), **arrays))

    assert [(w.name, w.count) for w in found] == [(codes, K * N), ("norm.scale", 3)]
    assert total(found[:1]).bits == 6.0


def test_no_weights_have_no_bits() -> None:
    assert total(weights_of(graph())).bits is None
