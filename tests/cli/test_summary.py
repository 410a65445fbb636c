"""The page about a bundle tells its states' sizes, its passes, and files that are damaged."""

import re
from dataclasses import replace
from typing import Any

import pytest

from intaglio.cli import summary
from intaglio.cli.console import Console, Flags
from intaglio.runtime.graph_entry import MAIN, GraphEntry, Limits, TargetEntry, TensorSpec
from intaglio.runtime.manifest import FileRecord, Manifest
from intaglio.state import Layout, StateSpec


def state(layout: Layout, shape: tuple[int | str, ...], dtype: str = "float32") -> StateSpec:
    return StateSpec(
        input=f"past.0.{layout}",
        output=f"present.0.{layout}",
        dtype=dtype,
        shape=shape,
        layout=layout,
        axis=2 if layout is Layout.STATIC else None,
        op="Attention",
        port="key",
        module="layers.0.attention",
        layer=0,
        call=0,
    )


MAIN_GRAPH = GraphEntry(
    inputs=(TensorSpec("input_ids", "int64", ("batch", "time")),),
    outputs=(TensorSpec("logits", "float32", ("batch", "time", 256)),),
    states=(
        state(Layout.STATIC, ("batch", 2, "capacity", 16), "bfloat16"),
        state(Layout.RECURRENT, ("batch", 4, 8, 8)),
    ),
    past_length=True,
    targets={"ort": TargetEntry(path="ort/model.onnx", opset=24, parity="passed")},
    limits=Limits(max_context=512),
    passes=(
        {
            "name": "statefulize",
            "nodes": [120, 110],
            "changed": True,
            "error": 1.5e-7,
            "notes": ["2 states"],
        },
        {"name": "remove-dead", "nodes": [110, 110], "changed": False, "error": None, "notes": []},
    ),
)
MANIFEST = Manifest(
    source={"name": "tiny", "sha256": "ab" * 32, "format": "intaglio", "model": "llama"},
    graphs={MAIN: MAIN_GRAPH},
    files={"ort/model.onnx": FileRecord("cd" * 32, 1_234_567)},
)


def parity(**rows: list[float | str]) -> dict[str, Any]:
    """Evidence with one row for each error."""
    return {
        "passed": False,
        "against": "tiny.pt",
        "precision": "float64",
        "steps": 64,
        "batch": 2,
        "splits": ["64 x 1", "1 x 64"],
        "rows": [
            {"name": name, "error": error, "limit": 1e-4, "worst_step": step}
            for name, errors in rows.items()
            for step, error in enumerate(errors)
        ],
    }


def page(capsys: pytest.CaptureFixture[str], damage: dict[str, str]) -> list[list[str]]:
    summary.show(Console(Flags()), MANIFEST, "bundle", damage)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_states_are_listed_with_the_bytes_of_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """2 heads of 16 numbers of 2 bytes for each token; 4 heads of 8 x 8 numbers of 4 bytes."""
    lines = page(capsys, {})

    assert "states 2, for each row 1.02 kB and 64 B for each token of context".split() in lines
    assert (
        "past.0.static [batch, 2, capacity, 16] bfloat16 static 64 B a token layers.0.attention"
    ).split() in lines


def test_states_that_a_target_stores_otherwise_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Caches in half the bytes; the recurrent state is what it was."""
    states = (state(Layout.STATIC, ("batch", 2, "capacity", 16)), MAIN_GRAPH.states[1])
    half = TargetEntry(path="trt/model.onnx", opset=27, dtype="float16")
    main = replace(MAIN_GRAPH, states=states, targets={**MAIN_GRAPH.targets, "trt": half})
    manifest = MANIFEST.with_graph(MAIN, main)
    summary.show(Console(Flags()), manifest, "bundle", {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]

    assert "states 2, for each row 1.02 kB and 128 B for each token of context".split() in lines
    assert "on trt 1.02 kB and 64 B for each token of context".split() in lines
    (place,) = (i for i, line in enumerate(lines) if line[:1] == ["past.0.static"])
    told = " ".join(word for line in lines[place : place + 2] for word in line)
    assert "float32, trt" in told
    assert "float16" in told
    recurrent = next(line for line in lines if line[:1] == ["past.0.recurrent"])
    assert "trt" not in recurrent


def test_passes_tell_nodes_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    lines = page(capsys, {})

    assert "statefulize 120 -> 110 1.5e-07".split() in lines
    assert "passes 2 ran, 1 changed the graph".split() in lines
    assert not [line for line in lines if line[:1] == ["remove-dead"]]


def test_those_who_ask_for_everything_see_unchanged_passes_and_notes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary.show(Console(Flags(verbose=True)), MANIFEST, "bundle", {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]

    assert "remove-dead 110, unchanged -".split() in lines
    assert "statefulize: 2 states".split() in lines


@pytest.mark.parametrize("verbose", [False, True])
def test_states_of_one_kind_are_one_line_unless_all_were_asked_for(
    verbose: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    alike = state(Layout.RECURRENT, ("batch", 4, 8, 8))
    states = (*(replace(alike, input=f"past.{i}") for i in range(12)), MAIN_GRAPH.states[0])
    manifest = MANIFEST.with_graph(MAIN, replace(MAIN_GRAPH, states=states))
    summary.show(Console(Flags(verbose=verbose)), manifest, "bundle", {})
    out = capsys.readouterr().out

    assert ("past.11" in out) is verbose
    assert bool(re.search(r"^ +12  past\.0 ", out, re.MULTILINE)) is not verbose
    assert ("each state, its module, and what grows with the context: -v" in out) is not verbose


def test_limits_targets_and_damage_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    lines = page(capsys, {"ort/model.onnx": "it was changed"})

    assert "context up to 512 tokens".split() in lines
    assert "target ort: ort/model.onnx, opset 24, passed".split() in lines
    assert "ort/model.onnx 1.23 MB it was changed".split() in lines


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (5e12, "5e+03 GB")],
)
def test_amounts(size: int, text: str) -> None:
    assert summary.amount(size) == text


def test_parity_shows_each_stream_where_it_is_farthest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is no number is farther than any number."""
    evidence = parity(logits=[1e-7, 3e-7, 2e-7], state=[1.0, "nan", 2.0])
    summary.show_parity(Console(Flags()), evidence)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]

    assert lines[1:] == [["logits", "3.0e-07", "1e-04", "1"], ["state", "nan", "1e-04", "1"]]


def test_what_compression_or_few_bits_moved_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """In words that are true of both."""
    evidence = {**parity(logits=[1e-7]), "quantization": {"logits": 0.25}}
    summary.show_parity(Console(Flags()), evidence)
    last = capsys.readouterr().out.splitlines()[-1]

    assert last == "the new weights moved the source's own outputs: logits 2.5e-01"


def test_of_many_streams_those_beyond_their_limits_are_never_hidden(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first output, ten that fail, and none of the twenty that are far from their limits."""
    streams: dict[str, list[float | str]] = {"logits": [1e-12]}
    streams.update({f"good{i}": [1e-9] for i in range(20)})
    streams.update({f"bad{i}": [1.0 + i] for i in range(10)})
    summary.show_parity(Console(Flags()), parity(**streams))
    out = capsys.readouterr().out
    shown = [line.split()[0] for line in out.splitlines()[1:-1]]

    assert shown == ["logits", *(f"bad{i}" for i in range(10))]
    assert "20 more, all farther from their limit" in out


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ({"accuracy": "fast", "in_two_parts": [0, 9]}, "activations rounded to 8 bits"),
        ({"accuracy": "mixed", "in_two_parts": [2, 9]}, "in two parts for 2 of 9 products"),
        ({"accuracy": "fine", "in_two_parts": [9, 9]}, "activations in two parts of 8 bits"),
        ({"accuracy": "exact"}, "in full precision: slow, to verify with"),
        ({"accuracy": "fast"}, "activations rounded to 8 bits"),
        ({}, "passed"),
    ],
)
def test_the_target_says_how_activations_are_taken(
    capsys: pytest.CaptureFixture[str], details: dict[str, Any], words: str
) -> None:
    """By what weights of few bits are multiplied with."""
    record = {**MAIN_GRAPH.passes[0], "name": "ort-low-bit", "details": details}
    main = replace(MAIN_GRAPH, passes=(*MAIN_GRAPH.passes, record))
    manifest = MANIFEST.with_graph(MAIN, main)
    summary.show(Console(Flags()), manifest, "bundle", {})
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("target"))

    assert line.endswith(words)
