"""Bundles profiled side by side: what is measured, in what state, and what is refused."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conditioned_bundle import write
from engines import ROOM, add_engine

from intaglio.errors import BundleError, OptionError, ProfileError
from intaglio.runtime.bundle import Bundle, BundleGraph
from intaglio.runtime.graph_entry import MAIN, GraphEntry, Limits, TensorSpec
from intaglio.runtime.ort.ort_tracer import ENGINE
from intaglio.runtime.profile import stream_calls
from intaglio.runtime.profile.child import CHUNK, OWN, BundleRunner, inputs_for, own_sizes
from intaglio.runtime.profile.measure import phases_of, profile
from intaglio.runtime.profile.report import Phase, ProfileReport
from intaglio.runtime.profile.settings import Contestant, ProfileSettings
from intaglio.runtime.profile.stream_calls import StreamCalls
from intaglio.runtime.session import Session
from intaglio.state import BATCH, TIME

MakeBundle = Callable[..., Path]

QUICK = ProfileSettings(
    contexts=[9, 3], prompts=[5], batch=2, threads=1, warmup=0, duration=0, iterations=4
)
STEP = 4 * 2 * 2 * 4  # bytes of keys of a token: float32, two rows, two heads of width 4


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> Bundle:
    return Bundle.open(make_bundle("static", "recurrent", "conv"))


@pytest.fixture(scope="module")
def report(
    build_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> ProfileReport:
    """Two bundles whose folders have the same name."""
    first, second = (tmp_path_factory.mktemp("folder") / "bundle" for _ in range(2))
    build_bundle(first, ("static", "recurrent", "conv"))
    build_bundle(second, ("grow",), external=True)
    return profile([first, second], QUICK)


def test_steps_are_measured_with_the_sizes_that_conditions_bring(tmp_path: Path) -> None:
    """Ids that pick entries of a source stay within it; what prepares takes sources as long."""
    runner = BundleRunner()
    bundle = write(tmp_path / "bundle", own_axis=True)
    runner.load(str(bundle), "auto", 1, None, graphs=("main", "prepare"))
    for kind, graph in (("prepare", "prepare"), ("prefill", "main"), ("step", "main")):
        runner.ready(kind, 3, 2, graph)
        assert len(runner.run(0, 2)) == 2
    assert own_sizes(Bundle.open(bundle).graph("prepare"), "ort") == {"source": OWN}


def test_contestants_are_measured_in_turns_in_every_phase(report: ProfileReport) -> None:
    """Prefills first, contexts in order, as many calls as were asked for, ratios round by round."""
    phases = [Phase("prefill", 5), Phase("step", 3), Phase("step", 9)]

    assert report.phases == phases
    for entry in report.measured:
        assert [timing.phase for timing in entry.timings] == phases
        for timing in entry.timings:
            assert [len(times) for times in timing.rounds] == [1] * 4
            assert min(timing.seconds) > 0
    assert [(r.phase, r.pairs) for r in report.ratios] == [(phase, 4) for phase in phases]
    assert report.measured[0].name != report.measured[1].name


def test_bytes_of_weights_states_arena_and_process_are_told_apart(report: ProfileReport) -> None:
    """States by their shapes: keys and values of the tokens, recurrent and convolution states."""
    static, grow = report.measured
    fixed = (
        4 * 2 * (2 * 4 * 4 + 8 * 3)
    )  # float32, two rows: a matrix a head, three inputs a channel
    at_nine, grown = static.timings[2], grow.timings[2]

    assert at_nine.states == 2 * STEP * 10 + fixed  # the step's own token is held afterwards
    assert at_nine.states_held == 2 * STEP * 256 + 2 * fixed  # fixed ones have two buffers
    assert (at_nine.capacity, grown.capacity) == (256, 256)
    assert grown.states == 2 * STEP * 10
    for entry in report.measured:
        held = [entry.before, entry.loaded, entry.peak, entry.weights, entry.arena]
        assert all(size is not None and size > 0 for size in held)
        assert entry.bits == 32


def test_time_of_operators_is_given_to_modules(report: ProfileReport) -> None:
    """Every module of the graph is there, the operators that carry state among them."""
    for entry, layers, carrier in zip(
        report.measured, (3, 1), ("LinearAttention", "Attention"), strict=True
    ):
        assert [(ops.kind, ops.tokens) for ops in entry.ops] == [
            ("prefill", 5),
            ("step", 3),
            ("step", 9),
        ]
        for ops in entry.ops:
            modules = {op.module for op in ops.ops}
            assert {f"layers.{i}" for i in range(layers)} | {"head"} <= modules | {ENGINE}
            assert carrier in {op.op for op in ops.ops}
            assert ops.calls > 0
            assert 0 < ops.kernels < ops.engine


def test_a_step_is_measured_at_the_very_context(bundle: Bundle) -> None:
    """However often it is repeated, and after contexts that were shorter."""
    runner = BundleRunner()
    runner.load(str(bundle.root), "auto", 1, None)
    for context in (3, CHUNK + 5):
        runner.ready("step", context, 2)
        for _ in range(2):
            assert len(runner.run(0, 3)) == 3
            assert runner._session.state.past_length.tolist() == [context + 1] * 2
            assert runner._session.state.carried.longest == context + 1


def test_a_prefill_starts_from_nothing(bundle: Bundle) -> None:
    runner = BundleRunner()
    runner.load(str(bundle.root), "auto", 1, None)
    runner.ready("step", 9, 1)
    runner.ready("prefill", 4, 1)
    runner.run(0, 3)

    assert runner._session.state.past_length.tolist() == [4]


def test_calls_go_on_until_the_time_is_over(bundle: Bundle) -> None:
    runner = BundleRunner()
    runner.load(str(bundle.root), "auto", 1, None)
    runner.ready("step", 1, 1)
    times = runner.run(0.05, 1)

    assert sum(times) <= 0.05 + times[-1]
    assert len(times) > 1


def spec(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def with_inputs(bundle: Bundle, *inputs: TensorSpec) -> GraphEntry:
    return replace(bundle.manifest.main, inputs=inputs)


def with_main(bundle: Bundle, main: GraphEntry) -> BundleGraph:
    """The main graph of a bundle, described otherwise."""
    return replace(bundle, manifest=bundle.manifest.with_graph(MAIN, main)).graph()


def test_inputs_are_such_as_a_model_takes(bundle: Bundle) -> None:
    """Token ids of the vocabulary, masks that hide nothing, floats of both signs, else zeros."""
    graph = with_inputs(
        bundle,
        spec("attention_mask", "int64", BATCH, TIME),
        spec("input_ids", "int32", BATCH, TIME),
        spec("token_type_ids", "int64", BATCH, TIME),
        spec("features", "float32", BATCH, TIME, 8),
        spec("keep", "bool", BATCH),
    )
    inputs = inputs_for(graph, 3, 500, 0)
    ids = inputs["input_ids"]

    assert {name: array.shape for name, array in inputs.items()} == {
        "attention_mask": (3, 500),
        "input_ids": (3, 500),
        "token_type_ids": (3, 500),
        "features": (3, 500, 8),
        "keep": (3,),
    }
    assert {name: str(array.dtype) for name, array in inputs.items()} == {
        entry.name: entry.dtype for entry in graph.inputs
    }
    assert (ids.min(), ids.max()) == (0, 22)
    assert inputs["attention_mask"].all()
    assert inputs["keep"].all()
    assert not inputs["token_type_ids"].any()
    assert inputs["features"].min() < 0 < inputs["features"].max()


def test_bounds_and_defaults_of_inputs_hold(bundle: Bundle) -> None:
    """An input that picks rows of a table stays within it; one that may be left out is as if so."""
    graph = with_inputs(
        bundle,
        TensorSpec("segments", "int64", (BATCH, TIME), below=2),
        TensorSpec("padding_mask", "int64", (BATCH, TIME), default=0),
        spec("bias", "int64", BATCH, TIME),
    )
    inputs = inputs_for(graph, 3, 50, 0)

    assert set(inputs["segments"].flat) == {0, 1}
    assert not inputs["padding_mask"].any()
    assert not inputs["bias"].any()


def test_a_dimension_that_nobody_chooses_is_refused(bundle: Bundle) -> None:
    graph = with_inputs(bundle, spec("image", "float32", BATCH, "height"))

    with pytest.raises(ProfileError, match="'image' has the free dimension 'height'"):
        inputs_for(graph, 1, 1, 0)


def limited(
    bundle: Bundle, *, max_context: int | None = None, batch: int | None = None
) -> BundleGraph:
    limits = Limits(max_context=max_context, batch=batch)
    return with_main(bundle, replace(bundle.manifest.main, limits=limits))


def test_usual_contexts_end_where_positions_do(bundle: Bundle) -> None:
    """A step needs a position of its own; a model shorter than all of them is filled."""
    usual, short = ProfileSettings(), limited(bundle, max_context=100)

    assert [str(phase) for phase in phases_of([bundle.graph()], usual)] == [
        *("prefill 512", "step at 128", "step at 1024", "step at 4096"),
    ]
    assert [str(phase) for phase in phases_of([limited(bundle, max_context=1025)], usual)] == [
        *("prefill 512", "step at 128", "step at 1024"),
    ]
    assert [str(phase) for phase in phases_of([bundle.graph(), short], usual)] == [
        *("prefill 100", "step at 99"),
    ]


def test_contexts_end_where_the_caches_of_an_engine_do(make_bundle: MakeBundle) -> None:
    """An engine of TensorRT has caches of one size; on ONNX Runtime they grow."""
    root = make_bundle("static")
    add_engine(root, "1.7")
    bundle = Bundle.open(root)

    assert [str(phase) for phase in phases_of([bundle.graph()], ProfileSettings(target="trt"))] == [
        *(f"prefill {ROOM}", f"step at {ROOM - 1}"),
    ]
    assert Phase("step", 4096) in phases_of([bundle.graph()], ProfileSettings())


def test_without_states_there_is_no_step(bundle: Bundle) -> None:
    """An encoder reads everything at once; what knows no time is called as it is."""
    encoder = with_main(bundle, replace(bundle.manifest.main, states=()))
    fixed = with_main(
        encoder.bundle, with_inputs(encoder.bundle, spec("image", "float32", BATCH, 8))
    )

    assert phases_of([encoder], QUICK) == [Phase("prefill", 5)]
    assert phases_of([fixed], QUICK) == [Phase("prefill", 1)]


def test_streams_step_together_beside_steps_of_one(bundle: Bundle) -> None:
    """In every context; what is no bundle takes no part, and whole graphs have none."""
    options = replace(QUICK, contexts=[1, 3], streams=5, ops=False)
    found = profile([bundle], options)
    phase = Phase("streams", 3, streams=5)
    timing = found.measured[0].timing(phase)

    assert [str(each) for each in found.phases][-2:] == ["5 streams at 1", "5 streams at 3"]
    assert timing is not None
    assert (timing.batch, len(timing.seconds)) == (5, QUICK.iterations)
    assert timing.tokens_per_second == pytest.approx(5 / timing.median)
    alone = found.measured[0].timing(Phase("step", 3))
    assert alone is not None
    assert alone.states is not None
    assert timing.states == 5 * (alone.states // QUICK.batch)
    json.dumps(found.to_json(), allow_nan=False)


def test_streams_begin_anew_before_they_outgrow_their_context(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_calls, "ON", 2)
    session = Session.load(bundle)
    token = {"input_ids": np.array([[1]])}
    calls = StreamCalls(session, 2, 3, lambda time: {"input_ids": np.ones((1, time), int)}, None)
    lengths = [(calls(), calls._open[0].past_length)[1] for _ in range(5)]
    calls.close()

    assert lengths == [4, 5, 4, 5, 4]
    assert session.step(token)["logits"].shape[1] == 1  # whose own state nobody used


def test_what_does_not_fit_is_refused_before_anything_runs(bundle: Bundle) -> None:
    other = with_main(bundle, with_inputs(bundle, spec("x", "float32", BATCH)))
    bounded = replace(bundle.manifest.main.inputs[0], below=7)

    with pytest.raises(OptionError, match=r"context of 9 tokens does not fit.*allow 8"):
        phases_of([limited(bundle, max_context=9)], QUICK)
    with pytest.raises(OptionError, match=r"prompt of 5 tokens does not fit.*allow 4"):
        phases_of([limited(bundle, max_context=4)], replace(QUICK, contexts=[2]))
    with pytest.raises(OptionError, match=r"context of 1\d+ tokens would have to be consumed"):
        phases_of([bundle.graph()], replace(QUICK, contexts=[10**30]))
    with pytest.raises(OptionError, match=r"batch of 1, not of 2\. Give --batch 1"):
        phases_of([limited(bundle, batch=1)], QUICK)
    phases_of([bundle.graph(), with_main(bundle, with_inputs(bundle, bounded))], QUICK)
    with pytest.raises(BundleError, match=r"takes x float32 \[batch\].*takes input_ids int64"):
        phases_of([bundle.graph(), other], QUICK)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"streams": 0}, "streams is 0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"duration": -1}, "duration is -1"),
        ({"duration": float("nan")}, "duration is nan"),
        ({"threads": 0}, "threads is 0"),
        ({"capacity": 0}, "capacity is 0"),
        ({"contexts": [4, 0]}, "context is 0"),
        ({"prompts": [-1]}, "prompt length is -1"),
        ({"percentiles": [0.0]}, "percentile is 0"),
        ({"percentiles": [101.0]}, "percentile is 101"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        ProfileSettings(**options)  # type: ignore[arg-type]


def test_a_step_that_the_engine_refuses_is_told_as_in_a_session(bundle: Bundle) -> None:
    """What a child raises is what a session of one's own would have raised."""
    (bundle.root / "ort/model.onnx").write_bytes(b"other")

    with pytest.raises(BundleError, match=r"ort/model\.onnx has 5 bytes"):
        profile([bundle.root], QUICK)


def test_a_contestant_that_dies_ends_the_profile(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its signal and its name are told."""
    child = "from intaglio.runtime.child_worker import serve\nimport os\n"
    (tmp_path / "peer_of_tests.py").write_text(
        child + "serve({'load': lambda: os.kill(os.getpid(), 9)})"
    )
    monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path))
    peer = Contestant(name="the peer", kind="eager", child="peer_of_tests", load={})

    with pytest.raises(ProfileError, match="measured the peer was ended by SIGKILL"):
        profile([bundle], QUICK, peers=[peer])
