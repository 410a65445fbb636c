"""Sessions of one bundle share one engine; a graph that is not as described is refused."""

import gc
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from intaglio.errors import BundleError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.ort import ort_engine
from intaglio.runtime.ort.ort_engine import open_engine

MakeBundle = Callable[..., Path]


def test_sessions_of_one_bundle_share_an_engine_while_one_lives(make_bundle: MakeBundle) -> None:
    """A copy of the bundle shares too; other weights or another number of threads do not."""
    bundle, copy, other = (Bundle.open(make_bundle("conv", seed=s)) for s in (0, 0, 1))
    first = open_engine(bundle.graph(), "ort", 1)

    assert open_engine(bundle.graph(), "ort", 1) is first
    assert open_engine(copy.graph(), "ort", 1) is first
    assert open_engine(bundle.graph(), "ort", 2) is not first
    assert open_engine(other.graph(), "ort", 1) is not first
    del first
    gc.collect()
    assert len(ort_engine._opened) == 0


def test_an_engine_whose_files_were_written_to_is_not_shared(make_bundle: MakeBundle) -> None:
    """Its weights are mapped: who holds a copy of a bundle would change those of the other."""
    copy, whole = (Bundle.open(make_bundle("conv", seed=0, external=True)) for _ in range(2))
    held = open_engine(copy.graph(), "ort", 1)
    (name,) = copy.graph().read("ort").files
    path = copy.root / name
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert open_engine(whole.graph(), "ort", 1) is not held


def test_threads_that_open_one_bundle_at_once_get_one_engine(make_bundle: MakeBundle) -> None:
    """The weights are not read twice by a race."""
    bundle = Bundle.open(make_bundle("conv"))
    barrier = threading.Barrier(4)
    engines = []

    def open_one() -> None:
        barrier.wait()
        engines.append(open_engine(bundle.graph(), "ort", 1))

    threads = [threading.Thread(target=open_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(engines) == 4
    assert len({id(found) for found in engines}) == 1


def test_a_graph_that_takes_something_else_than_the_manifest_says_is_refused(
    make_bundle: MakeBundle,
) -> None:
    """At load, with both lists of names."""
    bundle = make_bundle("conv")
    path = bundle / "manifest.json"
    entry = json.loads(path.read_text())
    entry["graphs"]["main"]["inputs"][0]["name"] = "tokens"
    path.write_text(json.dumps(entry))

    with pytest.raises(BundleError, match=r"takes input_ids, past\.0\.conv, but .* tokens"):
        open_engine(Bundle.open(bundle).graph(), "ort", 1)


def rewrite(bundle: Path, change: Callable[[Any], object]) -> Path:
    """Change what the manifest of `bundle` says."""
    path = bundle / "manifest.json"
    entry = json.loads(path.read_text())
    change(entry)
    path.write_text(json.dumps(entry))
    return bundle


def spoil(bundle: Path, name: str = "model.onnx.data") -> None:
    """Another weight, in a file of the same size."""
    content = bytearray((bundle / name).read_bytes())
    content[3] ^= 64
    (bundle / name).write_bytes(content)


@pytest.mark.parametrize("listed", [True, False])
def test_what_a_graph_reads_follows_from_the_graph(make_bundle: MakeBundle, listed: bool) -> None:
    """A manifest that leaves a file out, or does not list it, does not keep it from its hash."""
    bundle = make_bundle("conv", external=True)

    def hide(entry: Any) -> None:
        entry["graphs"]["main"]["targets"]["ort"]["data"] = []
        if not listed:
            del entry["files"]["model.onnx.data"]

    rewrite(bundle, hide)
    spoil(bundle)

    with pytest.raises(BundleError, match="changed after export" if listed else "does not list"):
        open_engine(Bundle.open(bundle).graph(), "ort", 1)


@pytest.mark.parametrize("name", ["model.onnx.data", "ort/model.onnx"])
def test_a_changed_bundle_gets_no_engine_of_a_good_one(make_bundle: MakeBundle, name: str) -> None:
    """That one of the same manifest is open does not make up for a file that was changed."""
    good, bad = make_bundle("conv", external=True), make_bundle("conv", external=True)
    engine = open_engine(Bundle.open(good).graph(), "ort", 1)
    spoil(bad, name)

    with pytest.raises(BundleError, match="changed after export"):
        open_engine(Bundle.open(bad).graph(), "ort", 1)
    assert open_engine(Bundle.open(good).graph(), "ort", 1) is engine


def test_bundles_do_not_exchange_engines_or_states(make_bundle: MakeBundle) -> None:
    """A manifest with the hashes of another bundle is no claim to its engine or its states."""
    one, two = (make_bundle("conv", seed=n, external=True) for n in (0, 1))
    files = json.loads((one / "manifest.json").read_text())["files"]
    kept = Bundle.open(one).graph().fingerprint("ort")
    engine = open_engine(Bundle.open(one).graph(), "ort", 1)

    rewrite(two, lambda entry: entry.update(files=files))

    with pytest.raises(BundleError, match=r"changed after export|bytes, the manifest says"):
        open_engine(Bundle.open(two).graph(), "ort", 1)
    assert engine is not None
    assert Bundle.open(one).graph().fingerprint("ort") == kept


def test_the_manifest_is_held_to_an_engine_that_is_open(make_bundle: MakeBundle) -> None:
    """What it says of inputs is compared each time, not when the engine is made alone."""
    good, renamed = make_bundle("conv", external=True), make_bundle("conv", external=True)
    engine = open_engine(Bundle.open(good).graph(), "ort", 1)

    def rename(entry: Any) -> None:
        entry["graphs"]["main"]["inputs"][0].update(name="tokens")

    rewrite(renamed, rename)

    with pytest.raises(BundleError, match="tokens"):
        open_engine(Bundle.open(renamed).graph(), "ort", 1)
    assert engine is not None
