"""What each fusion of the lowering for ONNX Runtime saves: nodes, and time of a step.

    python benchmarks/ort_fusions.py [--quick] [--json]

A Llama-type and a Gated DeltaNet hybrid with random weights are exported with the whole lowering
and with one fusion left out.  Both bundles step in turns, in sessions that are opened anew many
times, since where memory lies makes a difference; the ratio is the time without the fusion by that
with it, the median over the sessions of the medians of their pairs: of the processor on one thread,
of the clock on two.  The models are small, so that nodes count; of ten times as many weights, whose
reading takes most of a step, there is the ratio of all fusions together.  Nodes are those that the
engine runs, after its own optimisations.  A fusion pays if it gains 1 % for a model that it applies
to; one that does not is not in the lowering.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from evidence import Row, ratio, run

import intaglio
from intaglio.exporter import compile  # noqa: A004
from intaglio.exporter.options.served_shapes import ServedShapes
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.trace import trace
from intaglio.models import find, gated_deltanet, llama, save
from intaglio.passes import pipeline
from intaglio.passes.base import Pass
from intaglio.passes.lower.ort_decay_gate import OrtDecayGate
from intaglio.passes.lower.ort_packed_heads import OrtPackedHeads
from intaglio.passes.lower.ort_packed_products import OrtPackedProducts
from intaglio.passes.lower.ort_unit_norm import OrtUnitNorm
from intaglio.runtime import Session

FUSIONS: tuple[type[Pass], ...] = (
    OrtPackedHeads,
    OrtPackedProducts,
    OrtUnitNorm,
    OrtDecayGate,
)
CLOCKS = {1: time.thread_time, 2: time.perf_counter}  # by the number of threads
CONTEXT = 128
WARMUP = 10  # pairs
OPENINGS = 24  # of each bundle
GAIN = 1.01
ONE_ROW = ServedShapes.parse(shapes=["input_ids:1x1:1x64:1x4096"])
OPTIMIZED = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


@dataclass(frozen=True)
class Kind:
    """A model with random weights, and how often it is stepped."""

    name: str
    model: str
    config: Any
    pairs: int


SMALL = llama.Config(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=384,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
)
LARGE = llama.Config(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1536,
    num_layers=10,
    num_heads=8,
    num_kv_heads=4,
)


def _recurrent(like: llama.Config, layers: int) -> gated_deltanet.Config:
    return gated_deltanet.Config(
        vocab_size=like.vocab_size,
        hidden_size=like.hidden_size,
        intermediate_size=like.intermediate_size,
        num_layers=layers,
        num_heads=like.num_heads,
        num_kv_heads=like.num_kv_heads,
        head_size=64,
    )


KINDS = (
    Kind("Llama, 1M", "llama", SMALL, 4800),
    Kind("Gated DeltaNet, 1M", "gated-deltanet", _recurrent(SMALL, 4), 4800),
)
LARGE_KINDS = (
    Kind("Llama, 35M", "llama", LARGE, 240),
    Kind("Gated DeltaNet, 33M", "gated-deltanet", _recurrent(LARGE, 8), 240),
)


def measure(quick: bool) -> list[Row]:
    """For each model, the gain of all fusions together, and of each that applies to a small one."""
    torch.set_num_threads(1)
    rows = []
    for kind in KINDS if quick else (*KINDS, *LARGE_KINDS):
        with tempfile.TemporaryDirectory() as folder:
            rows += _rows(kind, Path(folder), kind.pairs // (4 if quick else 1))
    return rows


def _rows(kind: Kind, folder: Path, pairs: int) -> list[Row]:
    torch.manual_seed(0)
    checkpoint = folder / "model.pt"
    save(checkpoint, kind.model, kind.config, find(kind.model).build(kind.config))
    traced = trace(load_source(checkpoint))

    def again(_: Any) -> Any:
        return replace(traced, model=traced.model.clone())

    with patch.object(compile, "trace", again):
        return _compared(kind, checkpoint, folder, pairs)


def _compared(kind: Kind, checkpoint: Path, folder: Path, pairs: int) -> list[Row]:
    whole, applied = _export(checkpoint, folder / "whole", ())
    none, _ = _export(checkpoint, folder / "none", FUSIONS)
    rows = [_row(kind, "all fusions", whole, none, pairs, threads) for threads in CLOCKS]
    for fusion in FUSIONS if kind in KINDS else ():
        if fusion.name in applied:
            without, _ = _export(checkpoint, folder / fusion.name, (fusion,))
            rows += [_row(kind, fusion.name, whole, without, pairs, n) for n in CLOCKS]
    return rows


def _export(checkpoint: Path, out: Path, left: Sequence[type[Pass]]) -> tuple[Path, set[str]]:
    """A bundle whose lowering leaves out `left`, and the passes that changed its graph."""

    def without(*given: Any) -> list[Pass]:
        return [step for step in lowering(*given) if not isinstance(step, tuple(left))]

    lowering = pipeline.lowering
    with patch.object(pipeline, "lowering", without):
        report = intaglio.export(checkpoint, out, shapes=ONE_ROW, verify=False)
    return out, {entry["name"] for entry in report.manifest.main.passes if entry["changed"]}


def _row(kind: Kind, what: str, whole: Path, without: Path, pairs: int, threads: int) -> Row:
    ratios = sorted(_ratios(without, whole, pairs, threads))
    value, quarter = median(ratios), len(ratios) // 4
    before, after = _nodes(without), _nodes(whole)
    return Row(
        name=f"{kind.name}, threads {threads}: {what}",
        value=value,
        unit="ratio",
        target=f">= {GAIN}",
        holds=value >= GAIN,
        against="the lowering without",
        note=f"{before} nodes -> {after}; quartiles {ratios[quarter]:.3f}, {ratios[~quarter]:.3f}",
    )


def _ratios(without: Path, whole: Path, pairs: int, threads: int) -> Iterator[float]:
    """The ratio of each opening."""
    clock, both = CLOCKS[threads], (without, whole)
    for opening in range(OPENINGS):
        steps = {bundle: _step(bundle, threads) for bundle in both[:: 1 if opening % 2 else -1]}
        times: dict[Path, list[float]] = {without: [], whole: []}
        for index in range(pairs // OPENINGS + WARMUP):
            for bundle, kept in times.items():
                start = clock()
                steps[bundle]()
                if index >= WARMUP:
                    kept.append(clock() - start)
        yield ratio(times[without], times[whole])


def _step(bundle: Path, threads: int) -> Callable[[], object]:
    session = Session.load(bundle, threads=threads)
    session.step({"input_ids": np.ones((1, CONTEXT), np.int64)})
    token = {"input_ids": np.ones((1, 1), np.int64)}
    snapshot = session.state.save()
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count % 128 == 0:  # the context stays within its buffer
            session.state.restore(snapshot)
        session.step(token)

    return step


def _nodes(bundle: Path) -> int:
    """Nodes of the graph that the engine makes of a bundle's."""
    out = bundle / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = OPTIMIZED
    options.optimized_model_filepath = str(out)
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(bundle)
    )
    onnxruntime.InferenceSession((bundle / "ort" / "model.onnx").read_bytes(), options)
    return len(ir.load(out).graph)


if __name__ == "__main__":
    run(__doc__, measure)
