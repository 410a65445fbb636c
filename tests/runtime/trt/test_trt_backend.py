"""Conditions of engines: one engine makes states of them, on the device, that another one reads."""

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conditioned_bundle import write
from device import TensorRT
from engines import add_engine
from gpu import Driver

from intaglio.errors import DeviceError, InputError, StateError
from intaglio.runtime import user_cache
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.graph_entry import MAIN
from intaglio.runtime.profile.child import own_sizes
from intaglio.runtime.session import Session
from intaglio.runtime.trt.engine_build import TARGET

real = pytest.importorskip("tensorrt_rtx")
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((3, 6, 2)).astype(np.float32)
GIVEN = {
    "memory": RANDOM.standard_normal((3, 5, 2)).astype(np.float32),
    "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 1]]),
    "bias": np.array([1, -1], np.float32),
}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bundle of two graphs with an engine for each, and the stand-ins for library and GPU."""
    monkeypatch.setattr(user_cache, "folder", lambda kind: tmp_path / "cache" / kind)
    root = write(tmp_path / "bundle")
    yield root
    gc.collect()


def equip(root: Path, patch: pytest.MonkeyPatch, *, dtype: str = "float32") -> TensorRT:
    """Give both graphs engines."""
    built = {n: add_engine(root, real.__version__, graph=n, dtype=dtype) for n in (MAIN, "prepare")}
    runs = {
        graph.name: onnxruntime.InferenceSession(graph.bundle.read(graph.target(TARGET).path))
        for graph in Bundle.open(root).graphs.values()
    }
    trt = TensorRT(real, Driver(), runs[MAIN], built[MAIN].profiles)
    for graph in Bundle.open(root).graphs.values():
        trt.add(graph, runs[graph.name], built[graph.name].profiles)
    trt.install(patch)
    return trt


def test_steps_equal_those_of_onnx_runtime(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill, captured steps, forks, rows that start over with others, snapshots."""
    trt = equip(bundle, monkeypatch)
    sessions = [Session.load(bundle, target) for target in ("trt", "ort")]
    found = []
    for session in sessions:
        session.condition(GIVEN)
        made = [session.step({"x": X[:, :2]})["y"]]
        made += [session.step({"x": X[:, i : i + 1]})["y"] for i in range(2, 6)]
        twin = session.fork()
        session.state.reset([1])
        session.condition({"memory": 2 * GIVEN["memory"][:1, :3], "bias": GIVEN["bias"]}, rows=[1])
        made.append(session.step({"x": X[:, :1]})["y"])
        taken = twin.state.save()
        made.append(twin.step({"x": X[:, :1]})["y"])
        twin.state.restore(taken)
        twin.state.select([2, 0])
        made.append(twin.step({"x": X[[2, 0], :1]})["y"])
        found.append(made)
    for got, wanted in zip(*found, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert trt.driver.launched
    assert len({context.engine for context in trt.contexts}) == 2
    tuned = own_sizes(Bundle.open(bundle).graph("prepare"), TARGET)
    assert tuned == {"source": 4}  # what it is measured at


def test_a_snapshot_is_of_the_engines_that_made_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    equip(bundle, monkeypatch)
    one, other = (Session.load(bundle, target) for target in ("trt", "ort"))
    one.condition(GIVEN)
    with pytest.raises(StateError, match="belongs to another bundle"):
        other.state.restore(one.state.save())


def test_sizes_that_an_engine_was_not_built_for_change_nothing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the condition; so it is where the engine fails."""
    trt = equip(bundle, monkeypatch)
    session, reference = (Session.load(bundle, target) for target in ("trt", "ort"))
    for each in (session, reference):
        each.condition(GIVEN)
    long = {"memory": np.ones((3, 9, 2), np.float32)}
    with pytest.raises(
        InputError, match=r"'memory' has the shape \[3, 9, 2\].*1 to 8 along axis 1"
    ):
        session.condition(long)
    trt.runs = 0
    with pytest.raises(DeviceError, match="TensorRT cannot take this step"):
        session.condition({**GIVEN, "memory": -GIVEN["memory"]})
    trt.runs = None
    step = {"x": X}
    np.testing.assert_array_equal(session.step(step)["y"], reference.step(step)["y"])


def test_states_are_as_the_engine_that_steps_has_them(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp16, where what prepares them gives fp32; what fp16 does not hold is infinite there."""
    equip(bundle, monkeypatch, dtype="float16")
    session = Session.load(bundle, "trt")
    session.condition({**GIVEN, "memory": np.where(GIVEN["memory"] > 0, 1e30, GIVEN["memory"])})
    prepared = session.state.save().prepared
    assert {array.dtype for array in prepared.values()} == {np.dtype(np.float16)}
    assert np.isposinf(prepared["prepared_memory"]).any()
