"""Sessions of one bundle share one engine; a graph that is not as described is refused."""

import gc
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from intaglio.errors import BundleError
from intaglio.runtime import engine
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.engine import choose_target, open_engine

MakeBundle = Callable[..., Path]


def test_sessions_of_one_bundle_share_an_engine_while_one_lives(make_bundle: MakeBundle) -> None:
    """A copy of the bundle shares too; other weights or another number of threads do not."""
    bundle, copy, other = (Bundle.open(make_bundle("conv", seed=s)) for s in (0, 0, 1))
    first = open_engine(bundle, "ort", 1)

    assert open_engine(bundle, "ort", 1) is first
    assert open_engine(copy, "ort", 1) is first
    assert open_engine(bundle, "ort", 2) is not first
    assert open_engine(other, "ort", 1) is not first
    del first
    gc.collect()
    assert len(engine._opened) == 0


def test_threads_that_open_one_bundle_at_once_get_one_engine(make_bundle: MakeBundle) -> None:
    """The weights are not read twice by a race."""
    bundle = Bundle.open(make_bundle("conv"))
    barrier = threading.Barrier(4)
    engines = []

    def open_one() -> None:
        barrier.wait()
        engines.append(open_engine(bundle, "ort", 1))

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
    entry["inputs"][0]["name"] = "tokens"
    path.write_text(json.dumps(entry))

    with pytest.raises(BundleError, match=r"takes input_ids, past\.0\.conv, but .* tokens"):
        open_engine(Bundle.open(bundle), "ort", 1)


@pytest.mark.parametrize(
    ("target", "message"), [("npu", "cannot run the target 'npu'"), ("trt", "cannot run .*'trt'")]
)
def test_a_target_nobody_runs_is_refused(
    make_bundle: MakeBundle, target: str, message: str
) -> None:
    """With the names of those that are run."""
    with pytest.raises(BundleError, match=f"{message}; it runs: ort"):
        choose_target(Bundle.open(make_bundle("conv")), target)


def test_a_bundle_without_any_target_to_run_says_so(make_bundle: MakeBundle) -> None:
    """Rather than failing on a missing file."""
    bundle = make_bundle("conv")
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"targets": {}}))

    with pytest.raises(BundleError, match=r"it has: none\. Export it with --target ort"):
        choose_target(Bundle.open(bundle), "auto")
