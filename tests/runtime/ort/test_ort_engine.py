"""Sessions of one bundle share one engine; a graph that is not as described is refused."""

import gc
import json
import threading
from collections.abc import Callable
from pathlib import Path

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
