"""A bundle opens only whole, unchanged and within its folder."""

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from intaglio.errors import BundleError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.manifest import FileRecord, Manifest
from intaglio.runtime.session import Session

MakeBundle = Callable[..., Path]


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest of `bundle` as JSON."""
    path = bundle / "manifest.json"
    entry = json.loads(path.read_text())
    change(entry)
    path.write_text(json.dumps(entry))


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    """The message says what to give instead."""
    with pytest.raises(BundleError, match=r"not a bundle: it has no manifest\.json"):
        Bundle.open(tmp_path)


def test_an_absent_folder_and_a_file_are_told_apart(make_bundle: MakeBundle) -> None:
    """A typo in the path is not called a broken bundle."""
    bundle = make_bundle()

    with pytest.raises(BundleError, match="does not exist"):
        Bundle.open(bundle / "nothing")
    with pytest.raises(BundleError, match="is a file"):
        Bundle.open(bundle / "manifest.json")


@pytest.mark.parametrize("name", ["ort/model.onnx", "model.onnx.data"])
def test_a_changed_byte_is_refused(make_bundle: MakeBundle, name: str) -> None:
    """Of the same size, in the graph and in the weights alike."""
    bundle = make_bundle("recurrent", external=True)
    content = bytearray((bundle / name).read_bytes())
    content[100] ^= 1
    (bundle / name).write_bytes(content)

    with pytest.raises(BundleError, match=f"{name} was changed after export"):
        Session.load(bundle)


@pytest.mark.parametrize("name", ["ort/model.onnx", "model.onnx.data"])
def test_a_truncated_file_is_refused_by_its_size(make_bundle: MakeBundle, name: str) -> None:
    """An unfinished copy is named as what it is."""
    bundle = make_bundle("recurrent", external=True)
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[:-1])

    with pytest.raises(BundleError, match=f"has {len(content) - 1} bytes, .* says {len(content)}"):
        Session.load(bundle)


@pytest.mark.parametrize("name", ["ort/model.onnx", "model.onnx.data"])
def test_a_missing_file_is_named(make_bundle: MakeBundle, name: str) -> None:
    """With the bundle it is missing from."""
    bundle = make_bundle("recurrent", external=True)
    (bundle / name).unlink()

    with pytest.raises(BundleError, match=f"lacks the file '{name}'"):
        Session.load(bundle)


def test_a_file_that_the_manifest_does_not_list_is_not_opened(make_bundle: MakeBundle) -> None:
    """Nothing unhashed is used."""
    bundle = make_bundle("recurrent")
    rewrite(bundle, lambda entry: entry["files"].clear())

    with pytest.raises(BundleError, match="does not list it under files"):
        Session.load(bundle)


@pytest.mark.parametrize(
    "name", ["../secret", "ort/../../secret", "/etc/passwd", "C:\\secret", "..\\secret", ""]
)
@pytest.mark.parametrize("place", ["files", "path", "data"])
def test_a_path_that_leaves_the_bundle_is_refused(
    make_bundle: MakeBundle, name: str, place: str
) -> None:
    """Wherever the manifest names it, before anything is read, on any system's terms."""

    def point_outside(entry: dict[str, Any]) -> None:
        if place == "files":
            entry["files"][name] = {"sha256": "0" * 64, "bytes": 0}
        else:
            entry["graphs"]["main"]["targets"]["ort"][place] = name if place == "path" else [name]

    bundle = make_bundle("recurrent")
    rewrite(bundle, point_outside)

    with pytest.raises(BundleError, match="leaves the bundle"):
        Bundle.open(bundle)


def test_a_symbolic_link_out_of_the_bundle_is_refused(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """Even when it leads to the very bytes that the manifest describes."""
    bundle = make_bundle("recurrent")
    shutil.move(bundle / "ort/model.onnx", tmp_path / "elsewhere.onnx")
    (bundle / "ort/model.onnx").symlink_to(tmp_path / "elsewhere.onnx")

    with pytest.raises(BundleError, match="leaves the bundle"):
        Bundle.open(bundle)


def test_a_bundle_may_itself_be_reached_through_a_link(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """Only what is inside must stay inside."""
    (tmp_path / "link").symlink_to(make_bundle("recurrent", external=True))

    Session.load(tmp_path / "link").step({"input_ids": [[1]]})


def test_external_tensors_outside_the_bundle_are_refused(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """The graph's own locations are confined too, although only ONNX Runtime reads them."""
    bundle = make_bundle("recurrent", external=True)
    shutil.move(bundle / "model.onnx.data", tmp_path / "weights")
    graph = bundle / "ort/model.onnx"
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights"
    graph.write_bytes(model.SerializeToString())

    def accept(entry: dict[str, Any]) -> None:
        record = FileRecord.of(graph)
        entry["graphs"]["main"]["targets"]["ort"]["data"] = []
        entry["files"] = {"ort/model.onnx": {"sha256": record.sha256, "bytes": record.bytes}}

    rewrite(bundle, accept)

    with pytest.raises(BundleError, match=r"uses '\.\./weights' but does not list it"):
        Session.load(bundle)


def test_external_and_inline_weights_give_the_same(make_bundle: MakeBundle) -> None:
    """A graph in ort/ reads the weights that lie at the root of the bundle."""
    ids = np.arange(6).reshape(2, 3)
    outputs = [
        Session.load(make_bundle("recurrent", external=external)).step({"input_ids": ids})
        for external in (False, True)
    ]

    assert np.array_equal(outputs[0]["logits"], outputs[1]["logits"])


def test_an_absent_target_says_how_to_export_it(make_bundle: MakeBundle) -> None:
    """And what there is instead."""
    with pytest.raises(BundleError, match=r"no target 'trt'; it has: ort.*--target trt"):
        Bundle.open(make_bundle("conv")).graph().target("trt")


def test_the_fingerprint_tells_what_runs_not_what_is_said_of_it(make_bundle: MakeBundle) -> None:
    """Copies and re-verified bundles keep it, other weights change it."""
    one, same, other = make_bundle("conv"), make_bundle("conv"), make_bundle("conv", seed=1)
    rewrite(same, lambda entry: entry["graphs"]["main"]["parity"].update(passed=True))
    prints = [Bundle.open(path).graph().fingerprint("ort") for path in (one, same, other)]

    assert prints[0] == prints[1] != prints[2]
    assert Manifest.load(same / "manifest.json").main.parity == {"passed": True}


def test_a_private_session_goes_on_whatever_becomes_of_the_files(
    make_bundle: MakeBundle, make_ids: Callable[..., Any]
) -> None:
    """It runs a copy, also beside a session that runs the files themselves, and leaves none."""
    bundle = make_bundle(external=True)
    open_one = Session.load(bundle)
    private = Session.load(bundle, private=True)
    root = private.bundle.root
    wanted = open_one.step({"input_ids": make_ids(1, 3)})["logits"]
    del open_one
    for name in ("ort/model.onnx", "model.onnx.data"):
        with (bundle / name).open("r+b") as file:
            file.truncate(0)

    np.testing.assert_array_equal(private.step({"input_ids": make_ids(1, 3)})["logits"], wanted)
    twin = private.fork()
    del private
    assert twin.step({"input_ids": make_ids(1, 2)})["logits"].shape[1] == 2
    assert root.is_dir()
    del twin
    gc.collect()
    assert not root.exists()


def test_a_private_copy_is_of_files_as_they_were_exported(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    with (bundle / "ort/model.onnx").open("ab") as file:
        file.write(b"more")

    with pytest.raises(BundleError, match="bytes"):
        Session.load(bundle, private=True)
