"""Two bundles compared: what differs is named, and nothing else is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from intaglio.errors import BundleError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.bundle_diff import Entry, NodeChange, WeightChange, compare_bundles
from intaglio.runtime.graph_entry import MAIN, Limits
from intaglio.runtime.manifest import FileRecord

MakeBundle = Callable[..., Path]

GRAPH = "ort/model.onnx"


def edited(path: Path, edit: Callable[[onnx.ModelProto], None]) -> Bundle:
    """The bundle at `path` after an edit of its graph."""
    model = onnx.load(path / GRAPH)
    edit(model)
    onnx.save(model, path / GRAPH)
    bundle = Bundle.open(path)
    files = {**bundle.manifest.files, GRAPH: FileRecord.of(path / GRAPH)}
    return replace(bundle, manifest=replace(bundle.manifest, files=files))


def test_a_bundle_is_the_same_as_its_twin(make_bundle: MakeBundle) -> None:
    """Whether weights stand in the graph or beside it."""
    one, other = (Bundle.open(make_bundle(external=external)) for external in (False, True))
    found = compare_bundles(one, other)

    assert found.same
    assert (found.entries, found.passes, found.nodes, found.weights) == ([], [], [], [])
    assert found.equal_weights > 10
    assert found.totals[0].bytes == found.totals[1].bytes > 0


def test_states_and_nodes_are_told_by_module(make_bundle: MakeBundle) -> None:
    one, other = (Bundle.open(make_bundle(layout)) for layout in ("static", "grow"))
    found = compare_bundles(one, other)

    assert {entry.name for entry in found.entries if entry.kind == "state"} == {
        "past_key_values.0.key",
        "past_key_values.0.value",
    }
    assert Entry("fact", "past_length", "True", None) in found.entries
    assert NodeChange("layers.0", "TensorScatter", 2, 0) in found.nodes
    assert not found.same


def test_a_weight_that_moved_is_told_by_how_much(make_bundle: MakeBundle) -> None:
    def scale(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        array = numpy_helper.to_array(tensor).copy()
        array.flat[np.abs(array).argmax()] *= 1.25
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    found = compare_bundles(Bundle.open(make_bundle("conv")), edited(make_bundle("conv"), scale))

    [change] = found.weights
    assert (change.name, change.a) == ("constant_0", "float32 [23, 8]")
    assert change.distance == pytest.approx(0.25)


def test_weights_of_other_shapes_and_names_are_told_without_a_distance(
    make_bundle: MakeBundle,
) -> None:
    def edit(model: onnx.ModelProto) -> None:
        first, second = model.graph.initializer[:2]
        first.CopyFrom(numpy_helper.from_array(np.zeros((2, 2), np.float16), first.name))
        second.name = "renamed"

    found = compare_bundles(Bundle.open(make_bundle("conv")), edited(make_bundle("conv"), edit))

    assert WeightChange("constant_0", "float32 [23, 8]", "float16 [2, 2]", None) in found.weights
    assert WeightChange("renamed", None, "float32 [8, 1, 4]", None) in found.weights


def test_numbers_that_are_not_finite_have_no_distance(make_bundle: MakeBundle) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        array = np.full_like(numpy_helper.to_array(tensor), np.nan)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    found = compare_bundles(Bundle.open(make_bundle("conv")), edited(make_bundle("conv"), spoil))

    assert [change.distance for change in found.weights] == [None]


def record(name: str, before: int, after: int, **options: Any) -> dict[str, Any]:
    return {"name": name, "nodes": [before, after], "options": options}


def test_passes_are_told_where_they_did_something_else(make_bundle: MakeBundle) -> None:
    """Not where a pass before them left another number of nodes to start from."""
    opened = Bundle.open(make_bundle("conv"))
    main = opened.manifest.main
    left = (record("tidy", 9, 8), record("carry", 8, 12, kv="static"), record("tidy", 12, 11))
    right = (
        *(record("tidy", 9, 8), record("low-bit", 8, 8), record("carry", 8, 10, kv="grow")),
        record("tidy", 10, 9),
    )
    one, other = (
        replace(opened, manifest=opened.manifest.with_graph(MAIN, replace(main, passes=passes)))
        for passes in (left, right)
    )
    found = compare_bundles(one, other)

    assert found.passes == [
        Entry("pass", "low-bit", None, "+0 nodes"),
        Entry("pass", "carry", "kv='static'; +4 nodes", "kv='grow'; +2 nodes"),
    ]
    assert found.same


def test_limits_and_sources_are_facts(make_bundle: MakeBundle) -> None:
    one = Bundle.open(make_bundle("conv", limits=Limits(max_context=64, batch=1)))
    found = compare_bundles(one, Bundle.open(make_bundle("conv", seed=1)))
    names = {entry.name for entry in found.entries}

    assert {"source", "max_context", "batch"} <= names
    assert Entry("fact", "max_context", "64", None) in found.entries


def test_a_damaged_bundle_is_not_compared(make_bundle: MakeBundle) -> None:
    one, other = make_bundle("conv"), make_bundle("conv")
    (other / GRAPH).write_bytes(b"x")

    with pytest.raises(BundleError, match=r"ort/model\.onnx has 1 bytes"):
        compare_bundles(Bundle.open(one), Bundle.open(other))
