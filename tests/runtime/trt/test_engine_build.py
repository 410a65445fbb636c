"""Building the engine of a bundle: again, elsewhere, and from what is not as it should be."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpu import Driver

from intaglio.errors import BuildError, BundleError, IntaglioError, NotHereError
from intaglio.exporter.export import ExportReport
from intaglio.runtime.bundle import Bundle, BundleGraph
from intaglio.runtime.launch import LaunchPlan
from intaglio.runtime.manifest import FileRecord, Manifest
from intaglio.runtime.profile.child import own_sizes
from intaglio.runtime.trt import engine_build, flavour, kernels
from intaglio.runtime.trt.driver import Device
from intaglio.runtime.trt.engine_build import build, read_built
from intaglio.runtime.trt.trt_engine import faults


def test_a_bundle_is_built_again_where_it_lies(hybrid_engine: ExportReport, tmp_path: Path) -> None:
    """`intaglio build` needs the bundle alone; the manifest lists the new engine."""
    place = tmp_path / "bundle"
    shutil.copytree(hybrid_engine.out, place)
    (place / "trt/engine.plan").unlink()
    heard: list[str] = []
    graph, built = build(Bundle.open(place).graph(), progress=lambda what, _: heard.append(what))

    assert read_built(Bundle.open(place).graph()) == built
    assert graph.bundle.manifest == Manifest.load(place / "manifest.json")
    graph.bundle.check("trt/engine.plan")
    assert heard


def test_full_tensorrt_builds_for_the_gpu_that_is_there(
    hybrid_engine: ExportReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels for another one would be found out only when the engine runs."""
    device = Device(Driver(87))
    monkeypatch.setattr(flavour, "choose", lambda _: "tensorrt")
    monkeypatch.setattr(engine_build, "open_device", lambda: device)

    with pytest.raises(NotHereError, match=r"capability 80; Stand-in GPU has 87\..*--sm 87"):
        build(Bundle.open(hybrid_engine.out).graph())


def test_what_the_importer_refuses_is_told_by_module(
    hybrid_engine: ExportReport, tmp_path: Path
) -> None:
    """The node's module path, its operator, and TensorRT's reason."""
    place = tmp_path / "bundle"
    shutil.copytree(hybrid_engine.out, place)
    index = json.loads((place / "trt/plugins.json").read_text())
    (missing, *_) = [name for name in index["nodes"] if "LinearAttention" in name]
    del index["nodes"][missing]
    (place / "trt/plugins.json").write_text(json.dumps(index))
    manifest = Manifest.load(place / "manifest.json")
    changed = {"trt/plugins.json": FileRecord.of(place / "trt/plugins.json")}
    replace(manifest, files={**manifest.files, **changed}).save(place / "manifest.json")

    with pytest.raises(BuildError, match=r"layers\.0\.\w+: LinearAttention '"):
        build(Bundle.open(place).graph())


def test_weights_outside_the_bundle_are_refused(
    hybrid_engine: ExportReport, tmp_path: Path
) -> None:
    """TensorRT's parser would open whatever path the graph names."""
    place = tmp_path / "bundle"
    shutil.copytree(hybrid_engine.out, place)
    content = (place / "trt/model.onnx").read_bytes()
    (place / "trt/model.onnx").write_bytes(content.replace(b"model.onnx.data", b"../../some.data"))
    manifest = Manifest.load(place / "manifest.json")
    changed = {"trt/model.onnx": FileRecord.of(place / "trt/model.onnx")}
    replace(manifest, files={**manifest.files, **changed}).save(place / "manifest.json")

    with pytest.raises(BundleError, match=r"uses '.*\.\./\.\./some\.data' but does not list it"):
        build(Bundle.open(place).graph())


BUILT = {
    "flavour": "rtx",
    "version": "1.7",
    "capabilities": [80],
    "profiles": [
        {"name": "step", "shapes": {"input_ids": [[1, 1], [1, 1], [1, 8]]}},
    ],
    "inputs": [
        {"name": "input_ids", "dtype": "int64", "shape": [-1, -1]},
        {"name": "past_key_values.0.key", "dtype": "float32", "shape": [-1, 2, 16, 4]},
        {"name": "past_key_values.0.value", "dtype": "float32", "shape": [-1, 2, 16, 4]},
    ],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": [-1, -1, 8]}],
    "layers": [{"name": "a", "kind": "b", "plugin": ""}],
    "bytes": 9,
    "seconds": 1.5,
}
PLAN = LaunchPlan(inputs=(), outputs=(), variants=())
INDEX = {
    "kernels": {"k": {"op": "RNN", "plans": {"80": PLAN.to_json()}, "code": {}}},
    "nodes": {"n": "k"},
}
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**70, 0.5, float("nan"), "", "x", "../x", [], [[]], [-1], {}, {"x": 1}),
    *([1, 2, 3], "\ud800", "auto"),
)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON tree with each of its keys."""
    for key in range(len(tree)) if isinstance(tree, list) else list(tree):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from places(tree[key])


def changed(tree: Any) -> Iterator[Any]:
    """The tree with another value, and without one, at each of its places."""
    count = len(list(places(tree)))
    for number in range(count):
        for value in (*ODD, ...):
            copy = json.loads(json.dumps(tree))
            holder, key = list(places(copy))[number]
            if value is ...:
                del holder[key]
            else:
                holder[key] = value
            yield copy
    yield from (value for value in ODD if value != {})


@pytest.fixture
def opened(make_bundle: Callable[..., Path]) -> BundleGraph:
    """A bundle for TensorRT, whose records are put into it by `put`."""
    graph = Bundle.open(make_bundle("static")).graph()
    targets = {"trt": replace(graph.target("ort"), path="trt/model.onnx")}
    manifest = graph.bundle.manifest
    manifest = manifest.with_graph("main", replace(graph.entry, targets=targets))
    (graph.root / "trt").mkdir()
    return replace(graph.bundle, manifest=manifest).graph()


def put(graph: BundleGraph, name: str, content: Any) -> BundleGraph:
    path = graph.root / "trt" / name
    path.write_text(json.dumps(content))
    files = {**graph.bundle.manifest.files, f"trt/{name}": FileRecord.of(path)}
    return replace(graph.bundle, manifest=replace(graph.bundle.manifest, files=files)).graph()


def test_an_odd_record_is_refused_or_holds(opened: BundleGraph) -> None:
    """Whatever stands at any place of it: an error of ours, or figures that can be read."""
    graph = put(opened, "plugins.json", INDEX)
    names = [spec.input for spec in graph.entry.states]
    honest = json.loads(json.dumps(BUILT).replace("past_key_values.0.key", names[0]))
    honest = json.loads(json.dumps(honest).replace("past_key_values.0.value", names[1]))
    assert (built := read_built(put(graph, "build.json", honest))) is not None
    assert (built.spans(graph.entry)["time"][1], built.capacity(graph.entry)) == (8, 16)
    refused = held = 0
    for content in changed(honest):
        each = put(graph, "build.json", content)
        try:
            built = read_built(each)
            assert built is not None
            built.spans(each.entry)
            built.capacity(each.entry)
            own_sizes(each, "trt")
            list(faults(each, built))
            held += 1
        except BundleError:
            refused += 1
    assert refused > 600
    assert held > 50


def test_an_odd_index_of_kernels_is_refused_or_holds(opened: BundleGraph) -> None:
    for content in changed(INDEX):
        graph = put(opened, "plugins.json", content)
        for read in (kernels.code_of, kernels.operators, kernels.read):
            with contextlib.suppress(BundleError):
                read(graph)


def test_an_odd_request_is_refused(opened: BundleGraph) -> None:
    """Before anything is built; what holds ends where no TensorRT is."""
    request = {key: BUILT[key] for key in ("flavour", "capabilities", "profiles")}
    for content in changed(request):
        with pytest.raises(IntaglioError):
            build(put(opened, "request.json", content), flavour="tensorrt")
