"""Sessions of an engine of TensorRT: through a stand-in for the GPU, against ONNX Runtime itself.

The stand-in computes a step by the graph that the engine is made from, so that outputs and states
are equal to the bit; what is tested is all that lies between: addresses, shapes, sides, captures.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from device import Context, Engine, RuntimeCache, RuntimeConfig, Setting
from engines import MOST_ROWS, ROOM
from gpu import Driver

from intaglio.errors import (
    BundleError,
    DeviceError,
    InputError,
    MissingExtraError,
    StateError,
)
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.graph_entry import Limits
from intaglio.runtime.session import Session
from intaglio.runtime.trt import driver, flavour
from intaglio.runtime.trt.driver import Device
from intaglio.runtime.trt.engine_build import RECORD
from intaglio.state import PAST_LENGTH

real = pytest.importorskip("tensorrt_rtx")

Array = npt.NDArray[Any]


def same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def states(session: Session) -> dict[str, Array]:
    return dict(session.state.save().arrays)


@pytest.mark.parametrize("layout", ["recurrent", "conv", "window", "static", "grow", "all"])
def test_steps_equal_those_of_onnx_runtime(
    make: Callable[..., Setting], make_ids: Callable[..., Array], layout: str
) -> None:
    """Prefill, then tokens one by one: outputs at every step, states at the end."""
    setting = make(*(() if layout == "all" else (layout,)))
    engine, reference = setting.load(), setting.load("ort")
    ids = make_ids(2, 20)
    for window in (slice(5), *(slice(i, i + 1) for i in range(5, 20))):
        step = {"input_ids": ids[:, window]}
        same(engine.step(step), reference.step(step))

    same(states(engine), states(reference))
    assert engine.state.past_length.tolist() == [20, 20]
    assert {context.profile for context in setting.trt.contexts} == {0, 1}


@pytest.mark.parametrize(("layouts", "launched"), [(("recurrent", "static"), 6), (("grow",), 0)])
def test_a_step_that_repeats_is_one_launch(
    make: Callable[..., Setting],
    make_ids: Callable[..., Array],
    layouts: tuple[str, ...],
    launched: int,
) -> None:
    """From the third on, once each side has run; a cache that changes its shape never is."""
    setting = make(*layouts)
    engine, reference = setting.load(), setting.load("ort")
    for ids in make_ids(8, 1, 1):
        same(engine.step({"input_ids": ids}), reference.step({"input_ids": ids}))

    assert setting.driver.launched == launched
    assert len(setting.trt.contexts) == 1


def test_what_cannot_be_captured_runs_launch_by_launch(
    make: Callable[..., Setting], make_ids: Callable[..., Array]
) -> None:
    """A plugin or a library may refuse a capture; the step goes on all the same."""
    setting = make("recurrent", "static")
    setting.driver.refuses_capture = True
    engine, reference = setting.load(), setting.load("ort")
    for ids in make_ids(6, 1, 1):
        same(engine.step({"input_ids": ids}), reference.step({"input_ids": ids}))

    assert setting.driver.launched == 0


def test_what_shapes_follow_from_is_read_on_the_host(
    make: Callable[..., Setting], make_ids: Callable[..., Array]
) -> None:
    """And never captured: a graph would keep what it was."""
    setting = make("static")
    setting.trt.on_host = {PAST_LENGTH}
    engine, reference = setting.load(), setting.load("ort")
    for ids in make_ids(6, 1, 1):
        same(engine.step({"input_ids": ids}), reference.step({"input_ids": ids}))

    assert setting.driver.launched == 0


def test_more_tokens_than_the_engine_takes_go_in_parts(
    make: Callable[..., Setting], make_ids: Callable[..., Array]
) -> None:
    """Sixteen tokens where an engine takes six: one call for the user."""
    setting = make()
    engine, reference = setting.load(), setting.load("ort")
    ids = make_ids(2, 16)

    same(engine.step({"input_ids": ids}), reference.step({"input_ids": ids}))
    same(states(engine), states(reference))


def test_a_part_that_fails_leaves_the_state_as_it_was(
    make: Callable[..., Setting], make_ids: Callable[..., Array]
) -> None:
    """Parts before it have run, on a copy."""
    setting = make()
    session = setting.load()
    session.step({"input_ids": make_ids(2, 3)})
    before = states(session)
    setting.trt.runs = 1
    with pytest.raises(DeviceError, match="TensorRT cannot take this step: it does not say why"):
        session.step({"input_ids": make_ids(2, 16)})

    same(states(session), before)
    assert session.state.past_length.tolist() == [3, 3]


def test_rows_of_unequal_length(
    make: Callable[..., Setting], make_ids: Callable[..., Array]
) -> None:
    """Rows that end leave the device and come back."""
    setting = make("recurrent", "conv", "window", "static")
    engine, reference = setting.load(), setting.load("ort")
    for seed, lengths in enumerate(([3, 0, 5], [1, 9, 4])):
        step = {"input_ids": make_ids(3, max(lengths), seed=seed)}
        same(engine.step(step, lengths=lengths), reference.step(step, lengths=lengths))

    same(states(engine), states(reference))


def test_states_are_kept_taken_back_chosen_and_cleared(
    make: Callable[..., Setting], make_ids: Callable[..., Array], tmp_path: Path
) -> None:
    """Snapshots in a file, forks, rows in another order, rows from the start."""
    setting = make("recurrent", "conv", "window", "static")
    engine, reference = setting.load(), setting.load("ort")
    ids = [make_ids(2, 4, seed=seed) for seed in range(4)]
    for session in (engine, reference):
        session.step({"input_ids": ids[0]})
    twin, other = engine.fork(), reference.fork()
    engine.state.save(tmp_path / "state.npz")
    for session in (engine, reference, twin, other):
        session.step({"input_ids": ids[1]})
    same(states(twin), states(other))
    for session in (engine, reference):
        session.state.select([1, 0, 1])
        session.state.reset([0])
        session.step({"input_ids": np.concatenate([ids[2], ids[2][:1]])})
    same(states(engine), states(reference))
    engine.state.restore(tmp_path / "state.npz")
    twin.state.restore(tmp_path / "state.npz")
    same(engine.step({"input_ids": ids[3]}), twin.step({"input_ids": ids[3]}))


def test_the_engine_bounds_tokens_and_rows(
    make: Callable[..., Setting], make_ids: Callable[..., Array]
) -> None:
    """Both are refused with what mends them, and the state stays."""
    setting = make("static")
    session = setting.load()
    assert session.state.most_tokens == ROOM
    assert session.most_rows == MOST_ROWS
    with pytest.raises(InputError, match=r"'input_ids' has the shape \[4, 1\]; .* 1 to 3 along"):
        session.step({"input_ids": make_ids(4, 1)})
    session.step({"input_ids": make_ids(1, ROOM)})
    with pytest.raises(StateError, match=r"33 tokens, .* capacity 32\. .* export with --shapes"):
        session.step({"input_ids": make_ids(1, 1)})

    assert session.state.past_length.tolist() == [ROOM]


@pytest.mark.parametrize("layout", ["static", "grow"])
def test_caches_have_the_size_of_the_engine_whatever_a_model_allows(
    make: Callable[..., Setting], make_ids: Callable[..., Array], layout: str
) -> None:
    """Positions may end before the cache does: the engine reads all of it."""
    setting = make(layout, limits=Limits(max_context=20))
    engine, reference = setting.load(), setting.load("ort")
    ids = make_ids(1, 20)
    same(engine.step({"input_ids": ids}), reference.step({"input_ids": ids}))
    with pytest.raises(StateError, match="positions end at 20"):
        engine.step({"input_ids": ids[:, :1]})

    same(states(engine), states(reference))


def test_memory_is_given_back(make: Callable[..., Setting], make_ids: Callable[..., Array]) -> None:
    """Whatever the device and the pinned host held, once no session is left."""
    setting = make()
    session = setting.load()
    for time in (6, 1, 1, 1, 1):
        session.step({"input_ids": make_ids(1, time)})
    twin = session.fork()
    assert setting.driver.memory
    del session, twin
    gc.collect()

    assert setting.driver.memory == {}
    assert setting.driver.host == {}


def test_sessions_share_an_engine(make: Callable[..., Setting]) -> None:
    """Weights are on the device once; scratch memory and stream are a session's own."""
    setting = make("recurrent")
    first: Any = setting.load()
    others: list[Any] = [setting.load(), first.fork()]
    for second in others:
        assert second._backend.engine is first._backend.engine
        assert second._backend is not first._backend


def test_a_bundle_without_its_engine_says_how_it_gets_one(make: Callable[..., Setting]) -> None:
    """The export ran where none could be built."""
    setting = make("recurrent")
    manifest = Bundle.open(setting.bundle).manifest
    files = {name: record for name, record in manifest.files.items() if name != RECORD}
    replace(manifest, files=files).save(setting.bundle / "manifest.json")
    with pytest.raises(BundleError, match=r"no engine yet\. Build it .* intaglio build"):
        setting.load()


@pytest.mark.parametrize("fault", ["version", "capability", "kernels", "library", "engine"])
def test_what_keeps_an_engine_from_running_is_told(
    make: Callable[..., Setting], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Which, and how to mend it."""
    op = {"LinearAttention.0": {"op": "LinearAttention", "plans": {"86": {}}, "code": {}}}
    setting = make("recurrent", kernels=op if fault == "kernels" else None)
    kind: type[Exception] = DeviceError
    if fault == "version":
        setting.trt.__version__ = "2.0.1"  # type: ignore[attr-defined]
        message = rf"tensorrt_rtx {real.__version__}, and 2.0.1 is installed.*intaglio build"
    elif fault == "capability":
        gpu = Device(Driver(90))
        monkeypatch.setattr(driver, "open_device", lambda: gpu)
        message = r"compute capability 86, 89; Stand-in GPU has 90\. Export again with --sm 90"
    elif fault == "kernels":
        message = r"kernels of LinearAttention .* capability 86; Stand-in GPU has 89"
    elif fault == "library":
        monkeypatch.setattr(flavour, "installed", lambda _: None)
        kind, message = MissingExtraError, r"running an engine of tensorrt_rtx .*intaglio\[trt\]"
    else:
        setting.trt.fault = "magic tag does not match."
        message = r"does not load: magic tag does not match\. Build it .*intaglio build"
    with pytest.raises(kind, match=message):
        setting.load()


def test_kernels_that_were_compiled_are_kept(
    make: Callable[..., Setting], make_ids: Callable[..., Array], tmp_path: Path
) -> None:
    """In the user's cache: the next process compiles those of new shapes alone."""
    setting = make("recurrent")

    def compiled(*lengths: int) -> int:
        """How many kernels a process compiles that steps by so many tokens."""
        setting.trt.compiled.clear()
        session = setting.load()
        for length in lengths:
            session.step({"input_ids": make_ids(1, length)})
        del session
        gc.collect()
        return len(setting.trt.compiled)

    assert compiled(3, 1, 1) == 2
    assert compiled(3, 1, 1) == 0
    assert compiled(3, 4) == 1
    (kept,) = (tmp_path / "cache/engines").iterdir()
    kept.write_bytes(b"of another version")
    assert compiled(3, 1) == 2
    assert compiled(3, 1) == 0


def test_full_tensorrt_compiles_nothing_when_it_runs(
    make: Callable[..., Setting], make_ids: Callable[..., Array], tmp_path: Path
) -> None:
    setting = make("recurrent", flavour="tensorrt")
    step = {"input_ids": make_ids(1, 3)}
    same(setting.load().step(step), setting.load("ort").step(step))

    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_keeps_nobody_from_running(
    make: Callable[..., Setting], make_ids: Callable[..., Array], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    setting = make("recurrent")
    step = {"input_ids": make_ids(1, 3)}

    same(setting.load().step(step), setting.load("ort").step(step))


def test_no_gpu_is_told(make: Callable[..., Setting], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any library is asked."""
    setting = make("recurrent")
    monkeypatch.undo()
    with pytest.raises(DeviceError, match="finds no GPU here"):
        setting.load()


@pytest.mark.parametrize("flavour", ["rtx", "full"])
def test_the_stand_ins_offer_nothing_that_tensorrt_has_not(
    flavour: str, request: pytest.FixtureRequest
) -> None:
    """Every function of engines and contexts that a session calls exists in both flavours."""
    module, environment = "tensorrt_rtx", dict(os.environ)
    if flavour == "full":
        module = "tensorrt_bindings"
        environment["LD_LIBRARY_PATH"] = str(request.getfixturevalue("tensorrt_libraries"))
    code = f"""
import json, {module} as trt
kinds = (trt.ICudaEngine, trt.IExecutionContext, trt.Runtime, trt.BuilderFlag, trt.IProfiler)
kinds += {"(trt.IRuntimeConfig, trt.IRuntimeCache)" if flavour == "rtx" else "()"}
print(json.dumps([dir(kind) for kind in kinds]))
"""
    listed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    engine, context, runtime, flags, profiler, *jit = map(set, json.loads(listed.stdout))

    assert {n for n in vars(Engine) if not n.startswith("_")} <= engine
    assert {n for n in vars(Context) if not n.startswith("_")} <= context
    assert "deserialize_cuda_engine" in runtime
    assert "TF32" in flags
    for stand_in, names in zip((RuntimeConfig, RuntimeCache), jit, strict=False):
        own = {"compiled"}  # for tests
        assert {n for n in vars(stand_in) if not n.startswith("_")} - own <= names
    assert "report_layer_time" in profiler


def test_the_stand_in_driver_offers_nothing_that_cuda_has_not() -> None:
    """Every function that the runtime calls exists in cuda.bindings."""
    api = pytest.importorskip("cuda.bindings.driver")

    assert {n for n in vars(Driver) if n.startswith("cu")} <= set(dir(api))
    for kind in ("CUstreamCaptureMode", "CUstreamCaptureStatus", "CUevent_record_flags"):
        assert set(vars(getattr(Driver, kind))) <= set(dir(getattr(api, kind)))
