"""Stepping: any split gives the same, buffers are nobody else's, and misuse changes nothing."""

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.errors import InputError, StateError
from intaglio.runtime.graph_entry import MAIN, Limits
from intaglio.runtime.session import Session

Array = npt.NDArray[Any]
MakeSession = Callable[..., Session]
MakeIds = Callable[..., Array]

VOCABULARY = 23  # of the bundles in conftest.py
LAYOUTS = [("recurrent",), ("conv",), ("window",), ("static",), ("grow",)]
MIXED = ("recurrent", "conv", "window", "static")
every_layout = pytest.mark.parametrize("layouts", [*LAYOUTS, MIXED], ids="+".join)


def stream(session: Session, ids: Array, split: list[int]) -> Array:
    """Logits of `ids`, consumed in steps of the sizes in `split`."""
    ends = np.cumsum(split)
    assert ends[-1] == ids.shape[1]
    return np.concatenate(
        [
            session.step({"input_ids": ids[:, end - size : end]})["logits"]
            for size, end in zip(split, ends, strict=True)
        ],
        axis=1,
    )


def memory(session: Session) -> list[Array]:
    """The arrays that the session's states lie in."""
    buffers: Any = session.state.carried.buffers
    return [array for buffer in buffers for array in buffer.memory]


def same_state(one: Session, other: Session) -> bool:
    """Whether two sessions carry the same state, bit for bit."""
    a, b = one.state.save(), other.state.save()
    return np.array_equal(a.past_length, b.past_length) and all(
        np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays
    )


@every_layout
@pytest.mark.parametrize("batch", [1, 3])
def test_every_split_gives_the_outputs_of_one_call(
    make_session: MakeSession, make_ids: MakeIds, layouts: tuple[str, ...], batch: int
) -> None:
    """Whatever the layout: single tokens, blocks, and through a growing cache (8, 16, 32)."""
    session, ids = make_session(*layouts), make_ids(batch, 21)
    whole = session.step({"input_ids": ids})["logits"]

    for split in ([1] * 21, [7, 1, 13], [20, 1], [1, 20], [8, 8, 5]):
        session.state.reset()
        np.testing.assert_allclose(stream(session, ids, split), whole, atol=1e-5)


@every_layout
def test_the_state_matters(
    make_session: MakeSession, make_ids: MakeIds, layouts: tuple[str, ...]
) -> None:
    """The test above could not fail if the past were ignored."""
    session, ids = make_session(*layouts), make_ids(1, 4)
    whole = session.step({"input_ids": ids})["logits"]
    session.state.reset()
    alone = session.step({"input_ids": ids[:, -1:]})["logits"]

    assert np.abs(alone[:, -1] - whole[:, -1]).max() > 1e-2


@pytest.mark.parametrize("layout", ["static", "grow"])
def test_growth_by_doubling_equals_a_large_capacity(
    make_session: MakeSession, make_ids: MakeIds, layout: str
) -> None:
    """Capacity goes 2, 4, ... 32, and the outputs are those of one allocation."""
    small, large = make_session(layout, capacity=2), make_session(layout, capacity=64)
    ids = make_ids(2, 20)
    capacities = []
    for token in ids.T:
        step = {"input_ids": token[:, None]}
        np.testing.assert_allclose(
            small.step(step)["logits"], large.step(step)["logits"], atol=1e-5
        )
        capacities.append(small.state.capacity)

    assert capacities == [2] * 2 + [4] * 2 + [8] * 4 + [16] * 8 + [32] * 4
    assert large.state.capacity == 64
    assert small.state.memory < large.state.memory


@pytest.mark.parametrize("layout", ["static", "grow"])
def test_a_fixed_capacity_is_refused_beyond_and_exact_up_to_it(
    make_session: MakeSession, make_ids: MakeIds, layout: str
) -> None:
    """The refused step changes nothing: the session goes on with the room it has."""
    session, ids = make_session(layout, capacity=6, grow=False), make_ids(1, 6)
    first = stream(session, ids[:, :4], [4])
    with pytest.raises(StateError, match=r"hold 7 tokens.*fixed capacity 6.*grow=True"):
        session.step({"input_ids": ids[:, :3]})
    rest = stream(session, ids[:, 4:], [2])
    session.state.reset()

    np.testing.assert_allclose(
        np.concatenate([first, rest], axis=1), stream(session, ids, [6]), atol=1e-5
    )


@every_layout
def test_max_context_is_refused_before_anything_runs(
    make_session: MakeSession, make_ids: MakeIds, layouts: tuple[str, ...]
) -> None:
    """Also where no cache grows, as position tables end all the same."""
    session = make_session(*layouts, limits=Limits(max_context=5), capacity=100, grow=False)
    twin = make_session(*layouts, limits=Limits(max_context=5))
    for one in (session, twin):
        one.step({"input_ids": make_ids(1, 4)})
    with pytest.raises(StateError, match=r"hold 6 tokens.*5 \(max_context\)"):
        session.step({"input_ids": [[1, 2]]})

    assert same_state(session, twin)
    assert session.state.capacity in (None, 5)
    session.step({"input_ids": [[1]]})


@every_layout
def test_outputs_are_not_overwritten_by_later_steps(
    make_session: MakeSession, make_ids: MakeIds, layouts: tuple[str, ...]
) -> None:
    """What a step returned is the caller's: later steps of the same shape leave it alone."""
    session, ids = make_session(*layouts), make_ids(2, 6)
    outputs = [session.step({"input_ids": token[:, None]}) for token in ids.T]
    kept = [{name: array.copy() for name, array in output.items()} for output in outputs]
    for token in ids.T:
        session.step({"input_ids": token[:, None]})

    for output, each in zip(outputs, kept, strict=True):
        assert all(np.array_equal(output[name], each[name]) for name in each)
    assert not any(np.shares_memory(outputs[0]["logits"], o["logits"]) for o in outputs[1:])


def test_out_receives_the_outputs(make_session: MakeSession, make_ids: MakeIds) -> None:
    """The array given is the array returned; outputs not asked for are allocated."""
    session, twin, ids = make_session(*MIXED), make_session(*MIXED), make_ids(2, 3)
    array = np.full((2, 3, 23), np.nan, np.float32)
    for _ in range(3):
        found = session.step({"input_ids": ids}, out={"logits": array})
        expected = twin.step({"input_ids": ids})

        assert found["logits"] is array
        assert np.array_equal(array, expected["logits"])
        assert np.array_equal(found["hidden"], expected["hidden"])


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ({"logit": np.zeros((1, 2, 23), np.float32)}, "names 'logit'.*gives: logits, hidden"),
        ({"logits": np.zeros((1, 3, 23), np.float32)}, r"\(1, 3, 23\).*float32 \(1, 2, 23\)"),
        ({"logits": np.zeros((1, 2, 23))}, "is float64"),
        ({"logits": np.zeros((1, 2, 46), np.float32)[:, :, ::2]}, "contiguous"),
        ({"logits": [[0.0]]}, "is a list"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(
    make_session: MakeSession, out: dict[str, Any], message: str
) -> None:
    """Nothing is written past an array's end, and nothing was consumed."""
    session = make_session("static")
    with pytest.raises(InputError, match=message):
        session.step({"input_ids": [[1, 2]]}, out=out)

    assert session.state.batch is None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "'input_ids' is missing.*takes: input_ids"),
        ({"ids": [[1]]}, "'input_ids' is missing"),
        ({"input_ids": np.ones((1, 1), np.int64), "mask": [[1]]}, "no input 'mask'"),
        ({"input_ids": [1]}, r"shape \(1,\), should be \[batch, time\]"),
        ({"input_ids": np.ones((1, 1))}, r"is float64, should be int64.*astype\('int64'\)"),
        ({"input_ids": np.ones((1, 1), np.uint64)}, "is uint64, should be int64"),
        ({"input_ids": np.ones((1, 0), np.int64)}, "0 tokens"),
        ({"input_ids": np.ones((0, 1), np.int64)}, "0 rows"),
        ({"input_ids": [[23]]}, "the state is as it was"),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_inputs_that_do_not_fit_are_refused(
    make_session: MakeSession, inputs: dict[str, Any], message: str, warm: bool
) -> None:
    """By name, at the first step and later, when the shape is known, and the state stays."""
    session, twin = make_session(*MIXED), make_session(*MIXED)
    if warm:
        for one in (session, twin):
            one.step({"input_ids": np.array([[3]])})
    with pytest.raises(InputError, match=message):
        session.step(inputs)

    assert same_state(session, twin)
    assert session.state.batch == twin.state.batch
    after = {"input_ids": [[4]]}
    assert np.array_equal(session.step(after)["logits"], twin.step(after)["logits"])


def test_narrow_integers_are_widened(make_session: MakeSession, make_ids: MakeIds) -> None:
    """int32 and uint8 ids, and lists, give what int64 gives."""
    session, ids = make_session("recurrent"), make_ids(2, 3)
    expected = session.step({"input_ids": ids})["logits"]

    for given in (ids.astype(np.int32), ids.astype(np.uint8), ids.tolist(), ids[:, ::-1][:, ::-1]):
        session.state.reset()
        assert np.array_equal(session.step({"input_ids": given})["logits"], expected)


def test_a_fixed_batch_is_held(make_session: MakeSession) -> None:
    """A graph exported for one row is never given two."""
    session = make_session("static", limits=Limits(batch=1))
    with pytest.raises(InputError, match=r"2 rows, but .* batch of exactly 1"):
        session.step({"input_ids": [[1], [2]]})
    session.step({"input_ids": [[1]]})
    with pytest.raises(StateError, match=r"2 rows, but .* exactly 1"):
        session.state.select([0, 0])


def test_another_batch_midway_is_refused_and_free_after_reset(make_session: MakeSession) -> None:
    """The first step decides; a first step that failed decides nothing."""
    session = make_session("static")
    with pytest.raises(InputError):
        session.step({"input_ids": [[99], [99]]})
    session.step({"input_ids": [[1], [2], [3]]})
    with pytest.raises(StateError, match=r"2 rows, the carried state 3.*state\.select"):
        session.step({"input_ids": [[1], [2]]})
    session.state.reset()
    session.step({"input_ids": [[1], [2]]})

    assert session.state.batch == 2


@pytest.mark.parametrize("layouts", [*LAYOUTS, MIXED], ids="+".join)
def test_a_fork_and_its_parent_do_not_disturb_each_other(
    make_session: MakeSession, make_ids: MakeIds, layouts: tuple[str, ...]
) -> None:
    """Both continue bit for bit as sessions that were never forked, in-place caches included."""
    ids, left, right = make_ids(2, 5), make_ids(2, 6, seed=1), make_ids(2, 6, seed=2)
    parent = make_session(*layouts)
    parent.step({"input_ids": ids})
    twin = parent.fork()
    found: list[list[Array]] = [[], []]
    for a, b in zip(left.T, right.T, strict=True):
        found[0].append(parent.step({"input_ids": a[:, None]})["logits"])
        found[1].append(twin.step({"input_ids": b[:, None]})["logits"])

    for outputs, continuation in zip(found, (left, right), strict=True):
        alone = make_session(*layouts)
        alone.step({"input_ids": ids})
        assert np.array_equal(np.concatenate(outputs, 1), stream(alone, continuation, [1] * 6))


def test_a_fork_shares_weights_and_no_state(make_session: MakeSession) -> None:
    """The same engine, other buffers."""
    session = make_session(*MIXED)
    session.step({"input_ids": [[1, 2]]})
    twin = session.fork()

    assert twin._backend.engine is session._backend.engine  # type: ignore[attr-defined]
    for one in memory(session):
        assert not any(np.shares_memory(one, other) for other in memory(twin))


@pytest.mark.parametrize("layouts", [MIXED, ("grow",)], ids="+".join)
def test_two_threads_with_a_session_each_give_what_each_gives_alone(
    make_session: MakeSession, make_ids: MakeIds, layouts: tuple[str, ...]
) -> None:
    """Bit for bit, while they share one engine."""
    first = make_session(*layouts)
    sessions = [first, first.fork()]
    texts = [make_ids(1, 200, seed=seed) for seed in (1, 2)]
    alone = [stream(first.fork(), ids, [1] * 200) for ids in texts]
    barrier = threading.Barrier(2)
    found: dict[int, Array] = {}

    def work(index: int) -> None:
        barrier.wait()
        found[index] = stream(sessions[index], texts[index], [1] * 200)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(np.array_equal(found[index], alone[index]) for index in (0, 1))


def test_a_second_thread_in_one_session_is_refused(
    make_session: MakeSession, make_ids: MakeIds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a step runs; the step itself, the state and later steps are not disturbed."""
    session, alone, ids = make_session("conv"), make_session("conv"), make_ids(1, 4)
    run, within, go_on = session.stepper.run, threading.Event(), threading.Event()

    def slow(*given: Any) -> Any:
        within.set()
        assert go_on.wait(60)
        return run(*given)

    monkeypatch.setattr(session.stepper, "run", slow)
    results = []
    first = threading.Thread(
        target=lambda: results.append(session.step({"input_ids": ids})["logits"])
    )
    first.start()
    assert within.wait(60)
    with pytest.raises(StateError, match=r"A session serves one thread.*by fork or load"):
        session.step({"input_ids": ids})
    go_on.set()
    first.join()

    assert np.array_equal(results[0], alone.step({"input_ids": ids})["logits"])
    assert same_state(session, alone)
    session.step({"input_ids": ids})


def test_an_id_that_its_table_lacks_is_told_with_its_place(make_session: MakeSession) -> None:
    """Below zero too, where ONNX would count from the end; padding beyond a row's length may be."""
    bundle = make_session("conv").bundle
    (spec,) = bundle.manifest.main.inputs
    main = replace(bundle.manifest.main, inputs=(replace(spec, below=VOCABULARY),))
    bounded = bundle.manifest.with_graph(MAIN, main)
    session = Session.load(replace(bundle, manifest=bounded), threads=1)
    session.step({"input_ids": [[0, VOCABULARY - 1]]})
    for bad, place in (([[0, VOCABULARY]], r"23 at \[0, 1\]"), ([[-1, 0]], r"-1 at \[0, 0\]")):
        with pytest.raises(InputError, match=rf"'input_ids' has {place}.*from 0 to 22"):
            session.step({"input_ids": bad})
    session.state.reset()
    session.step({"input_ids": [[1, 2], [3, -100]]}, lengths=[2, 1])

    assert session.state.past_length.tolist() == [2, 1]


def test_a_cache_is_written_in_place(make_session: MakeSession) -> None:
    """A step adds its tokens to the array that holds the past; nothing else changes."""
    session = make_session("static")
    session.step({"input_ids": [[1, 2, 3]]})
    cache = memory(session)[0]
    pointer, before = cache.ctypes.data, cache.copy()
    session.step({"input_ids": [[4]]})

    assert memory(session)[0].ctypes.data == pointer
    assert np.array_equal(cache[:, :, :3], before[:, :, :3])
    assert (cache[:, :, 3] != before[:, :, 3]).all()
    assert not cache[:, :, 4:].any()


def test_a_repeated_step_binds_once(make_session: MakeSession) -> None:
    """Steps of a known shape reuse their binding, and few shapes stay bound."""
    session = make_session(*MIXED, capacity=512)
    for _ in range(2):
        for time in range(1, 12):
            session.step({"input_ids": np.ones((1, time), np.int64)})
    session.step({"input_ids": np.ones((1, 1), np.int64)})
    steps = session.state.carried.steps
    known = dict(steps)
    session.step({"input_ids": np.ones((1, 1), np.int64)})

    assert len(steps) == 8
    assert all(steps[key] is known[key] for key in known)


def test_a_session_holds_on_to_no_output(make_session: MakeSession) -> None:
    """The logits of a long prompt are free as soon as the caller drops them."""
    session = make_session(*MIXED, "grow")
    logits = session.step({"input_ids": np.ones((1, 50), np.int64)})["logits"]
    reference = weakref.ref(logits)
    del logits
    gc.collect()

    assert reference() is None


def test_load_refuses_a_capacity_without_room(make_session: MakeSession) -> None:
    """Zero tokens cannot be doubled."""
    with pytest.raises(InputError, match="capacity is 0"):
        make_session("static", capacity=0)


def test_any_line_of_a_step_may_be_interrupted(
    make_session: MakeSession, make_ids: Callable[..., Array]
) -> None:
    """The session then is as it was before the step, or as after it, and goes on."""
    session, twin = make_session("recurrent", "static"), make_session("recurrent", "static")
    ids = make_ids(2, 1)
    for each in (session, twin):
        each.step({"input_ids": ids})
    places = 0

    def interrupt(left: int) -> Callable[..., Any]:
        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if "/runtime/" not in frame.f_code.co_filename:
                return None
            left -= event == "line"
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        return trace

    while True:
        before = session.state.past_length[0]
        sys.settrace(interrupt(places))
        try:
            session.step({"input_ids": ids})
            break
        except KeyboardInterrupt:
            places += 1
        finally:
            sys.settrace(None)
        if session.state.past_length[0] > before:
            twin.step({"input_ids": ids})
        for name, value in session.state.save().arrays.items():
            np.testing.assert_array_equal(value, twin.state.save().arrays[name])

    twin.step({"input_ids": ids})
    assert places > 20
    assert session.state.past_length.tolist() == twin.state.past_length.tolist()
    first, second = (each.step({"input_ids": ids})["logits"] for each in (session, twin))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("copied", [copy, deepcopy])
def test_a_copy_of_a_session_has_a_state_of_its_own(
    make_session: MakeSession, make_ids: Callable[..., Array], copied: Callable[[Any], Any]
) -> None:
    session = make_session("recurrent")
    session.step({"input_ids": make_ids(1, 3)})
    twin = copied(session)
    twin.step({"input_ids": make_ids(1, 2)})

    assert (session.state.past_length[0], twin.state.past_length[0]) == (3, 5)
