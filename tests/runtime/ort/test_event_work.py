"""Work of runs from what the profiler of ONNX Runtime tells: types, sizes, absent arguments."""

from typing import Any

import pytest

from intaglio.runtime.onnx_graph import Node, OnnxGraph
from intaglio.runtime.ort.event_work import EventWorks
from intaglio.runtime.work import NodeWork

SHAPES, CACHE = {"float": [2, 3, 8]}, {"float": [2, 1, 64, 8]}


def told(takes: list[Any], gives: list[Any]) -> dict[str, Any]:
    return {"input_type_shape": takes, "output_type_shape": gives}


def test_a_fused_node_has_the_work_of_its_sizes() -> None:
    assert EventWorks(()).of("q", "QuickGelu", told([SHAPES], [SHAPES])) == NodeWork(2 * 192, 144)


def test_arguments_that_are_left_out_keep_their_places() -> None:
    """The profiler tells four tensors of an Attention without a mask: the last is no mask."""
    heads, keys = {"float": [1, 4, 8, 32]}, {"float": [1, 4, 64, 32]}
    node = Node(
        name="attn",
        op="Attention",
        module="",
        inputs=("q", "k", "v", "", "", "", "count"),
        outputs=("y",),
        integers={},
    )
    works = EventWorks((OnnxGraph((node,), {}),))
    found = works.of("attn", "Attention", told([heads, keys, keys, {"int64": [1]}], [heads]))

    assert found is not None
    assert found.operations == 2 * 64 * 2 * 4 * 8 * 32
    assert found.bytes == 2 * 4096 + 2 * 4 * 64 * 32 * 4 + 8


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("Nonsense", told([SHAPES], [SHAPES])),
        ("Mul", told([{"string": [3]}], [SHAPES])),
        ("Mul", {}),
        ("GroupQueryAttention", told([SHAPES] * 3 + [CACHE] * 2, [SHAPES, CACHE, CACHE])),
    ],
)
def test_what_is_not_known_has_no_work(op: str, arguments: dict[str, Any]) -> None:
    """Of caches that are written in place a profiler tells the room, not the tokens."""
    assert EventWorks(()).of("n", op, arguments) is None


def test_what_products_are_computed_in_is_told() -> None:
    """Weights of few bits with activations of 8 are no product of floats."""
    for level, dtype in ((4, "int8"), (0, "float32")):
        node = Node(
            name="n",
            op="com.microsoft::MatMulNBits",
            module="",
            inputs=("x", "w", "s"),
            outputs=("y",),
            integers={"K": 32, "N": 4, "accuracy_level": level},
        )
        codes = {"uint8": [4, 1, 16]}
        given = told([{"float": [1, 32]}, codes, {"float": [4]}], [{"float": [1, 4]}])
        found = EventWorks((OnnxGraph((node,), {}),)).of("n", "MatMulNBits", given)

        assert found is not None
        assert (found.operations, found.dtype) == (2 * 32 * 4, dtype)
