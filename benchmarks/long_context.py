"""What a token costs after a long context: mixers of mmMamba, pure and hybrid, against attention.

    python benchmarks/long_context.py [--quick] [--json]

Width 2048, 16 query and 8 key-value heads of 128, feed-forward 8192, 4 layers, random weights in
fp32, one row: all layers attention (GroupQueryAttention of ONNX Runtime, its cache in place), one
in four (hybrid), none (linear).  Whole models step in turns, at contexts from 1,024 to 103,000
tokens; the caches are filled, not computed, which costs a step the same.  Beside each ratio of
times is that of the bytes that a step has to move: weights of products once, keys and values of the
context once, recurrent states twice.  The paper's figures are of 32 layers in half precision on a
GPU.
"""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
import torch
from evidence import Row, run

import intaglio
from intaglio.exporter.options.served_shapes import ServedShapes
from intaglio.models.mmmamba import MMMAMBA, Config, axes, build, inputs
from intaglio.quiet import quiet
from intaglio.runtime import Session
from intaglio.state import Layout

THREADS = 2
KINDS = {"softmax": "0,1,2,3", "hybrid": "0", "linear": ""}
PAPER = {"linear": (20.6, 75.8), "hybrid": (13.5, 60.2)}  # times faster, % of memory less
LESS = {"linear": 75.0, "hybrid": 55.0}
SHARE = 0.8  # of the ratio that bytes predict
CONTEXTS, QUICK_CONTEXTS = (1024, 8192, 32_768, 103_000), (1024, 4096)
FULL = {"hidden_size": 2048, "intermediate_size": 8192, "num_heads": 16, "num_kv_heads": 8}
SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_heads": 4, "num_kv_heads": 2}
ROUNDS = 9
ROOM = 4 * ROUNDS


def measure(quick: bool) -> list[Row]:
    """Ratios of times at each context, and of states at the longest."""
    torch.set_num_threads(THREADS)
    contexts = QUICK_CONTEXTS if quick else CONTEXTS
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        made = {kind: _exported(kind, Path(folder), quick, contexts[-1]) for kind in KINDS}
        sessions = {kind: session for kind, (session, _) in made.items()}
        weights = {kind: size for kind, (_, size) in made.items()}
        for context in contexts:
            times = _in_turns(sessions, context)
            moved = {kind: weights[kind] + _states(sessions[kind], context) for kind in KINDS}
            note = ", ".join(f"{kind} {median(times[kind]) * 1e3:.1f} ms" for kind in KINDS)
            for kind in PAPER:
                pairs = zip(times["softmax"], times[kind], strict=True)
                measured = median(a / b for a, b in pairs)
                rows.append(_row(kind, context, measured, moved["softmax"] / moved[kind], note))
        rows += [_memory(kind, sessions, weights, contexts[-1]) for kind in PAPER]
    return rows


def _row(kind: str, context: int, measured: float, predicted: float, note: str) -> Row:
    return Row(
        name=f"{kind}: times faster than softmax, context {context}",
        value=measured,
        unit="x",
        target=f">= {SHARE * predicted:.2f}, {SHARE} of what bytes predict",
        holds=measured >= SHARE * predicted,
        against=f"bytes predict {predicted:.2f}; the paper has {PAPER[kind][0]} at 103K",
        note=note,
    )


def _memory(
    kind: str, sessions: Mapping[str, Session], weights: Mapping[str, int], context: int
) -> Row:
    held = {name: _held(sessions[name], context) for name in ("softmax", kind)}
    less = 100 * (1 - held[kind] / held["softmax"])
    both = {name: weights[name] + held[name] for name in held}
    whole = 100 * (1 - both[kind] / both["softmax"])
    sizes = " of ".join(f"{held[name] / 2**20:.0f}" for name in (kind, "softmax"))
    return Row(
        name=f"{kind}: state of a row below softmax's, context {context}",
        value=less,
        unit="%",
        target=f">= {LESS[kind]:g}",
        holds=less >= LESS[kind],
        against=f"the paper has {PAPER[kind][1]} % of the GPU's memory",
        note=f"{sizes} MiB; with weights {whole:.1f} %",
    )


def _exported(kind: str, folder: Path, quick: bool, context: int) -> tuple[Session, int]:
    """A session with room for the longest context, and the bytes of what products multiply with."""
    sizes = {"vocab_size": 1024, "image_token": 1023, "num_layers": 4}
    layers = {"attention_layers": KINDS[kind]}
    config: Config = MMMAMBA.configure({**sizes, **layers, **(SMALL if quick else FULL)})
    torch.manual_seed(0)
    module = build(config).eval().requires_grad_(requires_grad=False)
    examples = inputs(config, 2, 16, torch.Generator().manual_seed(0))
    pixels = "x".join(map(str, (1, *examples["pixel_values"].shape[1:])))
    with quiet():
        intaglio.export(
            module,
            folder / kind,
            inputs=examples,
            axes=axes(config),
            shapes=ServedShapes.parse(
                shapes=[
                    "input_ids:1x1:1x16:1x131072",
                    f"pixel_values:{pixels}:{pixels}:{pixels}",
                ]
            ),
            verify=False,
            portable=False,
        )
    size = (
        sum(4 * p.numel() for p in module.text.layers.parameters())
        + 4 * module.text.lm_head.weight.numel()
    )
    del module
    session = Session.load(folder / kind, threads=THREADS, capacity=context + ROOM, grow=False)
    session.condition({"pixel_values": examples["pixel_values"][:1].numpy()})
    session.step({"input_ids": np.zeros((1, 1), np.int64)})
    carried = session.state.carried
    for buffer in carried.buffers:  # memory that was never written is not there yet
        buffer.put(carried.side, context, ..., 0.01)
    return session, size


def _in_turns(sessions: Mapping[str, Session], context: int) -> dict[str, list[float]]:
    """Seconds of steps of one token, after `context` tokens, each model in its turn."""
    token = {"input_ids": np.zeros((1, 1), np.int64)}
    times: dict[str, list[float]] = {kind: [] for kind in sessions}
    for session in sessions.values():
        session.state.carried.past_length[:] = context
        session.state.carried.longest = context
    for turn in range(ROUNDS + 2):
        for kind, session in sessions.items():
            start = time.perf_counter()
            logits = session.step(token)["logits"]
            if turn >= 2:
                times[kind].append(time.perf_counter() - start)
            assert np.isfinite(logits).all()
    return times


def _states(session: Session, context: int) -> int:
    """Bytes of states that a step moves: caches are read, recurrent states read and written."""
    held = _by_layout(session, context)
    return held[True] + 2 * held[False]


def _held(session: Session, context: int) -> int:
    return sum(_by_layout(session, context).values())


def _by_layout(session: Session, context: int) -> dict[bool, int]:
    held = {True: 0, False: 0}
    for name, value in session.state.carried.values(context).items():
        spec = next(s for s in session.manifest.main.states if s.input == name)
        tokens = context / value.shape[spec.axis] if spec.axis is not None and spec.grows else 1
        held[spec.layout is Layout.STATIC] += int(value.nbytes * tokens)
    return held


if __name__ == "__main__":
    run(__doc__, measure)
