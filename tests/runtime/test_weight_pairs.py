"""The same parameter in two bundles: what is paired, and by how much it differs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from low_bit_graphs import draw, graph_of, lowered

from intaglio.runtime.bundle import Bundle
from intaglio.runtime.bundle_diff import compare_bundles
from intaglio.runtime.manifest import FileRecord

Array = npt.NDArray[Any]
Holding = Callable[[onnx.ModelProto | ir.Model], Bundle]

GRAPH = "ort/model.onnx"


def floats(arrays: Mapping[str, Array]) -> onnx.ModelProto:
    """A graph that holds float weights, and nothing else."""
    held = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], held))


@pytest.fixture
def holding(make_bundle: Callable[..., Path]) -> Holding:
    """A bundle that holds a graph."""

    def make(model: onnx.ModelProto | ir.Model) -> Bundle:
        path = make_bundle("conv")
        onnx.save(ir.to_proto(model) if isinstance(model, ir.Model) else model, path / GRAPH)
        bundle = Bundle.open(path)
        files = {**bundle.manifest.files, GRAPH: FileRecord.of(path / GRAPH)}
        return replace(bundle, manifest=replace(bundle.manifest, files=files))

    return make


@pytest.mark.parametrize("turned", [False, True])
def test_a_float_weight_is_paired_with_its_codes_whichever_comes_first(
    turned: bool, holding: Holding
) -> None:
    """Relative to the float, the worst first, and its parts are off the list."""
    weights = [draw(3, 3, 40, 12), draw(3, 5, 40, 12)]
    stood = [w.dequantize().T if turned else w.dequantize() for w in weights]
    random = np.random.default_rng(0)
    exact = {
        f"w{i}": (x + (i + 1) * random.uniform(-0.1, 0.1, x.shape)).astype(np.float32)
        for i, x in enumerate(stood)
    }
    one, other = holding(floats(exact)), holding(lowered(graph_of(weights, turned=turned)))
    found, back = compare_bundles(one, other), compare_bundles(other, one)

    assert [pair.name for pair in found.pairs] == ["w1", "w0"]
    assert [(pair.a, pair.b) for pair in back.pairs] == [("3 bits, groups of 12", "float32")] * 2
    for pair, turn in zip(found.pairs, back.pairs, strict=True):
        x, y = exact[pair.name], stood[int(pair.name[1])]
        assert pair.error == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x), rel=1e-4)
        assert pair.largest == pytest.approx(np.abs(x - y).max(), rel=1e-4)
        assert (turn.error, turn.largest) == (pair.error, pair.largest)
    assert {change.name[:10] for change in found.weights} == {"group_sums"}


def test_two_numbers_of_bits_are_compared_and_the_same_codes_are_equal(holding: Holding) -> None:
    """Before and after lowering a weight is the same, which is no difference to tell."""
    four, two = draw(4, 6, 64, 32), draw(2, 6, 64, 64)
    portable, low = holding(graph_of([four])), holding(lowered(graph_of([four])))
    [pair] = compare_bundles(low, holding(lowered(graph_of([two])))).pairs
    x, y = four.dequantize(), two.dequantize()

    assert (pair.a, pair.b) == ("4 bits, groups of 32", "2 bits, groups of 64")
    assert pair.error == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x), rel=1e-4)
    assert compare_bundles(portable, low).pairs == []
    assert compare_bundles(low, low).same


def test_codes_of_one_name_that_differ_are_one_pair(holding: Holding) -> None:
    one, other = (
        holding(lowered(graph_of([replace(draw(4, 6, 64, 32, "none"), scale=scale)])))
        for scale in (np.full((6, 2), 0.5, np.float32), np.full((6, 2), 0.25, np.float32))
    )
    found = compare_bundles(one, other)

    [pair] = found.pairs
    assert (pair.name, round(pair.error or 0, 6)) == ("w0", 0.5)
    assert (found.weights, found.same) == ([], False)


def test_a_table_that_stays_float_beside_its_codes_is_compared_by_both(holding: Holding) -> None:
    """The float of one name on both sides stays on the list, whatever else it is paired with."""
    weight = draw(4, 6, 64, 32)
    model = graph_of([weight])
    tied = np.ascontiguousarray(weight.dequantize() + 1)
    held = ir.Value(name="w0", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(tied.shape))
    held.const_value = ir.tensor(tied, name="w0")
    model.graph.register_initializer(held)
    found = compare_bundles(holding(floats({"w0": tied + 1})), holding(model))

    assert [pair.b for pair in found.pairs] == ["4 bits, groups of 32"]
    assert [change.name for change in found.weights if change.distance is not None] == ["w0"]


def test_shapes_that_do_not_fit_are_listed_and_not_paired(holding: Holding) -> None:
    other = holding(graph_of([draw(4, 6, 64, 32)]))
    found = compare_bundles(holding(floats({"w0": np.ones((5, 64), np.float32)})), other)

    assert found.pairs == []
    assert {"w0", "w0.codes", "w0.scale", "w0.offset"} <= {each.name for each in found.weights}


def test_dtypes_are_compared_and_what_is_not_finite_is_told_first(holding: Holding) -> None:
    x = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    spoilt = np.where(x > 0.9, np.inf, x).astype(np.float32)
    one = holding(floats({"a": x, "b": spoilt, "zero": 0 * x}))
    half = {"a": x.astype(np.float16), "b": x.astype(np.float16), "zero": np.zeros((3, 4), "f2")}
    found = compare_bundles(one, holding(floats(half)))

    assert [pair.name for pair in found.pairs] == ["b", "a", "zero"]
    assert (found.pairs[0].error, found.pairs[2].error) == (None, 0)
    assert 0 < (found.pairs[1].error or 0) < 1e-3
    assert "pairs" in found.to_json()
