"""What `Session.step` adds to a bare ONNX Runtime call on the same graph, at one token.

    python benchmarks/step_overhead.py [--quick] [--json]

The bare call is `run_with_iobinding` alone, again and again on one binding made beforehand: the
same engine, inputs and outputs, with states of the same shapes, nothing checked, moved on or
allocated.  Both run one thread.  The larger model exceeds a last-level cache of 32 MB four times.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from evidence import Row, paired, ratio, run
from onnxruntime import OrtValue

import intaglio
from intaglio.models import find, save
from intaglio.models.llama import Config
from intaglio.runtime import Session
from intaglio.runtime.graph_entry import TensorSpec
from intaglio.runtime.ort.ort_engine import open_engine
from intaglio.state import BATCH, CAPACITY, PAST_LENGTH, TIME, Layout, StateSpec

CHECKPOINTS = Path(__file__).parents[1] / "models" / "checkpoints"
CONTEXT, WARMUP = 128, 20  # tokens consumed before, and steps not counted
LARGE = Config(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1536,
    num_layers=10,
    num_heads=8,
    num_kv_heads=4,
)  # 35M parameters, 140 MB
RATIO, MICROSECONDS = 1.10, 20.0


def measure(quick: bool) -> list[Row]:
    """Rows for two small models and one of 35M parameters."""
    torch.set_num_threads(1)
    many, few = (300, 50) if quick else (1000, 300)
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "llama-35M.pt"
        save(large, "llama", LARGE, find("llama").build(LARGE))
        return [
            *_rows("Llama, 0.7M parameters", CHECKPOINTS / "llama.pt", folder, many),
            *_rows("Gated DeltaNet", CHECKPOINTS / "gated_deltanet.pt", folder, many),
            *_rows("Llama, 35M parameters", large, folder, few),
        ]


def _rows(name: str, checkpoint: Path, folder: str, pairs: int) -> list[Row]:
    bundle = Path(folder) / checkpoint.stem
    intaglio.export(checkpoint, bundle, verify=False)
    room = CONTEXT + WARMUP + pairs
    session = Session.load(bundle, threads=1, capacity=room, grow=False)
    session.step({"input_ids": np.zeros((1, CONTEXT), np.int64)})
    token = {"input_ids": np.zeros((1, 1), np.int64)}
    ours, bare = paired(lambda: session.step(token), _bare(session, room), pairs, WARMUP)
    relative = ratio(ours, bare)
    added = 1e6 * statistics.median(a - b for a, b in zip(ours, bare, strict=True))
    holds = relative <= RATIO or added <= MICROSECONDS
    note = (
        f"bare {1e6 * statistics.median(bare):.0f} us, {len(session.manifest.main.states)} states"
    )
    target = f"<= {RATIO:.2f} or {MICROSECONDS:.0f} us"
    against = "run_with_iobinding"
    return [
        Row(name=f"{name}: added", value=added, unit="us", target=target, holds=holds,
            against=against, note=note),
        Row(name=f"{name}: step / bare", value=relative, unit="ratio", target=target, holds=holds,
            against=against),
    ]  # fmt: skip


def _bare(session: Session, room: int) -> Callable[[], None]:
    """A call of the session's engine with everything bound, from the session's state on."""
    manifest, snapshot = session.manifest, session.state.save()
    engine = open_engine(session.graph, session.target, threads=1)
    binding = engine.io_binding()
    sizes = {BATCH: 1, TIME: 1, CAPACITY: room}

    def zeros(spec: TensorSpec | StateSpec) -> npt.NDArray[Any]:
        shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape]
        return np.zeros(shape, spec.dtype)

    for spec in manifest.main.inputs:
        binding.bind_ortvalue_input(spec.name, OrtValue.ortvalue_from_numpy(zeros(spec)))
    for spec in manifest.main.outputs:
        binding.bind_ortvalue_output(spec.name, OrtValue.ortvalue_from_numpy(zeros(spec)))
    for state in manifest.main.states:
        past, present = zeros(state), zeros(state)
        filled = snapshot.arrays[state.input]
        past[tuple(map(slice, filled.shape))] = filled
        if state.layout is Layout.STATIC:
            present = past
        binding.bind_ortvalue_input(state.input, OrtValue.ortvalue_from_numpy(past))
        binding.bind_ortvalue_output(state.output, OrtValue.ortvalue_from_numpy(present))
    length = snapshot.past_length.copy()
    if manifest.main.past_length:
        binding.bind_ortvalue_input(PAST_LENGTH, OrtValue.ortvalue_from_numpy(length))

    def call() -> None:
        engine.run_with_iobinding(binding)
        length[0] += 1  # attention costs what its context does: keep that equal

    return call


if __name__ == "__main__":
    run(__doc__, measure)
