"""Engines in one process: what a step takes beside others, loaded or stepping in turn.

    python benchmarks/engines_together.py [--quick] [--json]

Every engine has two threads.  ONNX Runtime's own way is to spin while they wait, within a call and
for a while after it, which takes a core from whatever runs meanwhile; those of a session sleep
(`runtime/ort/ort_engine.py`).  A bundle steps alone, beside a second one that is loaded and has
stepped, and in turn with it; rounds alternate, so that what disturbs the machine disturbs all.
The same graph then runs bare under each of ONNX Runtime's settings, alone and in turn with three
others: what the choice stands on.  Ratios are medians of pairs of rounds.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from evidence import Row, ratio, run
from onnx import TensorProto, helper, numpy_helper

import intaglio
from intaglio.models import find, save
from intaglio.models.llama import Config
from intaglio.runtime import Session

LARGE = Config(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1536,
    num_layers=10,
    num_heads=8,
    num_kv_heads=4,
)  # 35M parameters, 140 MB
THREADS, CONTEXT, MOST = 2, 64, 1.03
SETTINGS = {
    "ONNX Runtime's own": {},
    "stop between calls": {"session.force_spinning_stop": "1"},
    "never spin": {"session.intra_op.allow_spinning": "0"},
}
WIDTH, OTHERS = 4096, 3  # of the bare graph's weight, and how many more run in turn with it


def measure(quick: bool) -> list[Row]:
    """Rows for two bundles, then for each setting."""
    torch.set_num_threads(1)
    rounds, steps = (8, 20) if quick else (30, 60)
    with tempfile.TemporaryDirectory() as folder:
        return [*_bundles(Path(folder), rounds, steps), *_settings(rounds, 3 if quick else 10)]


def _bundles(folder: Path, rounds: int, steps: int) -> list[Row]:
    """A bundle alone, beside another one, and in turn with it."""
    first, second = (_export(folder, seed) for seed in (0, 1))
    session = _session(first)
    alone, beside, turns = [], [], []
    for _ in range(rounds):
        alone.append(_median([session], steps))
        other = _session(second)
        beside.append(_median([session], steps))
        turns.append(_median([session, other], steps))
        del other  # its engine and threads go with it
    step = f"alone {1e3 * statistics.median(alone):.2f} ms a step, {THREADS} threads each"
    return [
        Row(name="one of two bundles steps", value=ratio(beside, alone), unit="ratio",
            target=f"<= {MOST}", holds=ratio(beside, alone) <= MOST, against="alone", note=step),
        Row(name="two bundles step in turn", value=ratio(turns, alone), unit="ratio",
            against="alone", note="their weights share the cache, too"),
    ]  # fmt: skip


def _export(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    source, bundle = folder / f"{seed}.pt", folder / str(seed)
    save(source, "llama", LARGE, find("llama").build(LARGE))
    intaglio.export(source, bundle, verify=False)
    return bundle


def _session(bundle: Path) -> Session:
    session = Session.load(bundle, threads=THREADS, capacity=4096)
    session.step({"input_ids": np.zeros((1, CONTEXT), np.int64)})
    return session


def _median(sessions: Sequence[Session], steps: int) -> float:
    """Seconds of a step of the first of `sessions`, which take turns, at one context."""
    token = {"input_ids": np.zeros((1, 1), np.int64)}
    calls = [lambda session=session: session.step(token) for session in sessions]
    found = _turns(calls, steps)
    for session in sessions:
        session.state.reset()
        session.step({"input_ids": np.zeros((1, CONTEXT), np.int64)})
    return found


def _turns(calls: Sequence[Callable[[], object]], times: int) -> float:
    kept = []
    for _ in range(times):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if index == 0:
                kept.append(time.perf_counter() - start)
    return statistics.median(kept)


def _settings(rounds: int, times: int) -> list[Row]:
    """A product of one row under each setting of the threads."""
    names, rows = list(SETTINGS), []
    engines = {name: [_bare(seed, SETTINGS[name]) for seed in range(1 + OTHERS)] for name in names}
    single = [_bare(0, {}, threads=1)]
    alone: dict[str, list[float]] = {name: [] for name in names}
    turns: dict[str, list[float]] = {name: [] for name in names}
    lonely = []
    for _ in range(rounds):
        lonely.append(_turns(single, times))
        for name in names:
            time.sleep(0.01)  # whoever still spins has stopped by then
            alone[name].append(_turns(engines[name][:1], times))
            turns[name].append(_turns(engines[name], times))
    for name in names:
        for words, found in (("alone", alone[name]), (f"in turn with {OTHERS}", turns[name])):
            rows.append(
                Row(name=f"product, {name}, {words}", value=ratio(found, lonely), unit="ratio",
                    against="one thread, alone",
                    note=f"{1e3 * statistics.median(found):.2f} ms")
            )  # fmt: skip
    return rows


def _bare(seed: int, settings: dict[str, str], threads: int = THREADS) -> Callable[[], Any]:
    """A call of an engine that multiplies one row by a square matrix."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    engine = onnxruntime.InferenceSession(
        _product(seed), options, providers=["CPUExecutionProvider"]
    )
    row = {"x": np.ones((1, WIDTH), np.float32)}
    return lambda: engine.run(None, row)


def _product(seed: int) -> bytes:
    weight = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH), np.float32)
    takes, gives = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH]) for name in "xy"
    )
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    held = [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph([node], "product", [takes], [gives], held)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    content: bytes = model.SerializeToString()
    return content


if __name__ == "__main__":
    run(__doc__, measure)
