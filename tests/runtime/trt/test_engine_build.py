"""Building the engine of a bundle: again, elsewhere, and from what is not as it should be."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from gpu import Driver

from intaglio.errors import BuildError, BundleError, NotHereError
from intaglio.exporter.export import ExportReport
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.manifest import FileRecord, Manifest
from intaglio.runtime.trt import engine_build, flavour
from intaglio.runtime.trt.driver import Device
from intaglio.runtime.trt.engine_build import build, read_built


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
