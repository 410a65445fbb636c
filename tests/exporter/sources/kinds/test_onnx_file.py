"""ONNX files: read whichever of PyTorch's exporters wrote them, refused with the way out."""

import shutil
from pathlib import Path

import onnx
import onnx.parser
import pytest

from intaglio.errors import SourceError, TraceError
from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.trace import trace

TEXT = """
    <ir_version: 10, opset_import: ["" : 18, "other" : 1]>
    g (float[batch, time, 3] x) => (float[batch, time, 3] y) { y = %s }
"""


def write(path: Path, node: str, axes: str = "batch, time, 3") -> Path:
    text = (TEXT % node).replace("float[batch, time, 3] x", f"float[{axes}] x")
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.mark.parametrize("name", ["new", "old"])
def test_a_graph_becomes_a_bundle_with_the_paths_of_its_modules(
    exported: Path, tmp_path: Path, name: str
) -> None:
    """Decomposed attention, sizes taken from shapes, names of axes of its own: all are understood.

    It is compared with the file as ONNX Runtime runs it, its states with one prefill.
    """
    report = export(exported / f"{name}.onnx", tmp_path / "bundle", steps=20, check_passes=True)

    assert report.parity is not None
    assert report.parity.passed
    assert report.parity.precision == "float32"
    assert report.manifest.main.limits.max_context == 40
    assert {(spec.module, spec.layout) for spec in report.manifest.main.states} == {
        ("layers.0", "static")
    }
    assert report.manifest.main.inputs[0].shape == ("batch", "time")


def test_a_graph_of_fixed_sizes_says_how_to_export_it(exported: Path) -> None:
    with pytest.raises(SourceError, match=r"batch of the input 'input_ids' is fixed to 2 \(2x9\)"):
        load_source(exported / "fixed.onnx", whole=False)

    source = load_source(exported / "fixed.onnx")
    assert source.whole
    assert source.dynamic == {"input_ids": {}}
    assert "its results depend on that" in source.notes[0]


def test_another_layout_is_told_by_its_free_axes(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", "Tanh (x)", axes="b, 3, t")

    assert load_source(path).dynamic == {"x": {0: "batch", 2: "time"}}
    source = load_source(path, axes={"x": ("batch", 3, "time")})
    assert source.dynamic == {"x": {0: "batch", 2: "time"}}


def test_operators_of_other_domains_are_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", "other.Magic (x)")

    with pytest.raises(SourceError, match="not of the ONNX standard: other::Magic"):
        load_source(path)


@pytest.mark.parametrize("place", ["../w.data", "/etc/hostname", "link.data", ""])
def test_weights_outside_the_folder_are_refused(exported: Path, tmp_path: Path, place: str) -> None:
    """Absolute, upwards, through a link, or nowhere."""
    shutil.copy(exported / "new.onnx.data", tmp_path / "w.data")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.data").symlink_to(tmp_path / "w.data")
    model = onnx.load(exported / "new.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    (folder / "g.onnx").write_bytes(model.SerializeToString())

    with pytest.raises(SourceError, match="leaves the folder of the graph"):
        load_source(folder / "g.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\x08\x0a", "is not an ONNX graph"), (b"hello", "not a whole ONNX file")],
)
def test_damaged_files_are_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "g.onnx").write_bytes(content)

    with pytest.raises(SourceError, match=message):
        load_source(tmp_path / "g.onnx")


def test_a_graph_that_froze_the_number_of_tokens_is_refused(tmp_path: Path) -> None:
    """Its axes are called free, but it runs at one length only."""
    text = """
        <ir_version: 10, opset_import: ["" : 18]>
        g (float[batch, time, 3] x) => (float[batch, time, 3] y)
        <int64[3] shape = {-1, 9, 3}> { y = Reshape (x, shape) }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "g.onnx")

    with pytest.raises(TraceError, match="does not run on every size of batch and time"):
        trace(load_source(tmp_path / "g.onnx"))
