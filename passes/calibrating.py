"""Learning from calibration data: graphs that run over it, and the statistics taken of that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxruntime import InferenceSession
from torch import Tensor

from intaglio.errors import PassError
from intaglio.state import BATCH, PAST_LENGTH, TIME, Layout

from . import evaluate, stepping
from .base import Context
from .calibration import Array, Batch, Calibration
from .graph import dims
from .replay import Replay

LOGITS = "logits"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """X^T X / tokens of what goes into a layer, [K, K] in float64, fitted and held out."""

    fitted: Tensor
    held_out: Tensor | None
    tokens: int


def replay(model: ir.Model, context: Context, batches: Sequence[int] | None = None) -> Replay:
    """A replay of `model` over the calibration data, carried states as before the first token.

    Over all of its batches, unless some are named.
    """
    data = context.calibration
    assert data is not None
    chosen = range(len(data.batches)) if batches is None else batches
    engine = None if context.prepare is None else evaluate.session(context.prepare)
    return Replay(model, [_feeds(model, context, data.batches[i], engine) for i in chosen])


def _feeds(
    model: ir.Model, context: Context, batch: Batch, prepare: InferenceSession | None
) -> dict[str, Array]:
    """The inputs of `model`; `prepare` makes those that follow from conditions alone."""
    taken = {value.name for value in model.graph.inputs}
    feeds = {name: array for name, array in batch.inputs.items() if name in taken}
    changing = [spec for spec in context.states if spec.layout is not Layout.PREPARED]
    if changing:
        feeds |= stepping.first_states(changing, batch.rows, batch.steps)
    if prepare is not None:
        given = {value.name: batch.inputs[value.name] for value in prepare.get_inputs()}
        names = [value.name for value in prepare.get_outputs()]
        feeds |= zip(names, prepare.run(names, given), strict=True)
    if PAST_LENGTH in taken:
        feeds[PAST_LENGTH] = np.zeros(batch.rows, np.int64)
    return feeds


def entries(value: ir.Value, array: Array, batch: Batch) -> Array:
    """What `array` holds of `value` for a batch, as [entries, K], without padding at row ends.

    What does not lie along time, as what is made of conditions, has no such padding.
    """
    timed = TIME in (dims(value) or (TIME,))
    return batch.valid(array) if timed else array.reshape(-1, array.shape[-1])


def statistics(run: Replay, value: ir.Value, calibration: Calibration, who: str) -> Statistics:
    """Statistics of `value`, which the replay has reached.

    Raises:
        PassError: it holds NaN or infinity; the layer that it goes into, `who`, is named.
    """
    held = set(calibration.held_out)
    sums: dict[bool, Tensor] = {}
    counts = {False: 0, True: 0}
    for index, array in enumerate(run.values(value.name or "")):
        x = torch.from_numpy(entries(value, array, calibration.batches[index])).double()
        gram = x.T @ x
        if not bool(gram.isfinite().all()):
            raise PassError(
                f"{who}: its input over the calibration data holds NaN or infinity (batch "
                f"{index}). Look for such values in the data, and whether the model runs on it."
            )
        part = index in held
        sums[part] = gram if part not in sums else sums[part].add_(gram)
        counts[part] += len(x)
    means = {part: total / counts[part] for part, total in sums.items()}
    return Statistics(fitted=means[False], held_out=means.get(True), tokens=counts[False])


def check(model: ir.Model, context: Context) -> None:
    """Refuse calibration data that the graph does not take.

    Raises:
        PassError: an input is absent, unknown, or of another dtype or shape.
    """
    assert context.calibration is not None
    carried = {PAST_LENGTH, *(state.input for state in context.states)}
    wanted = {v.name or "": v for v in model.graph.inputs if v.name not in carried}
    found = context.calibration.batches[0].inputs
    if found.keys() != wanted.keys():
        raise PassError(
            f"the calibration data has {', '.join(map(repr, found)) or 'no arrays'}; the model "
            f"takes {', '.join(map(repr, wanted))}. Name the arrays like its inputs."
        )
    for name, value in wanted.items():
        array, shape = found[name], dims(value) or ()
        fits = len(shape) == array.ndim and all(
            not isinstance(d, int) or d == n for d, n in zip(shape, array.shape, strict=True)
        )
        if (value.dtype is not None and array.dtype != value.dtype.numpy()) or not fits:
            raise PassError(
                f"the calibration data has {name!r} as {array.dtype} {list(array.shape)}; the "
                f"model takes {value.dtype} [{', '.join(map(str, shape))}]."
            )


def measure(run: Replay, model: ir.Model, context: Context) -> dict[str, float | None]:
    """How well a replay does to its end, on what is held out, or on all where nothing is.

    Of a language model, the perplexity; of others, how far their outputs are from those of `model`:
    the squared difference as a part of the squares, over all outputs.
    """
    data = context.calibration
    assert data is not None
    batches = data.held_out or data.fitted
    ids = _tokens_of(model)
    if ids is not None:
        losses, count = 0.0, 0
        for index, outputs in zip(batches, run.outputs(batches), strict=True):
            logits = outputs[model.graph.outputs[0].name or ""]
            loss, tokens = _loss(data.batches[index], ids, logits)
            losses, count = losses + loss, count + tokens
        return {"perplexity": math.exp(min(losses / count, 700.0)) if count else None}
    plain = replay(model, context)
    wrong = whole = 0.0
    for got, wanted in zip(run.outputs(batches), plain.outputs(batches), strict=True):
        for name in wanted.keys() - {state.output for state in context.states}:
            wrong += float(np.square(got[name].astype(np.float64) - wanted[name]).sum())
            whole += float(np.square(wanted[name].astype(np.float64)).sum())
    return {"error": wrong / whole if whole else None}


def stage(
    name: str, model: ir.Model, context: Context, dense: ir.Model | None = None
) -> dict[str, Any]:
    """`measure` of a whole graph, under a name; errors are against `dense`, if it is given."""
    run = replay(model, context)
    try:
        return {"stage": name, **measure(run, dense or model, context)}
    finally:
        run.close()


def _tokens_of(model: ir.Model) -> str | None:
    """The input of token ids [batch, time] that `model` maps to logits [batch, time, vocabulary].

    None where it does something else.
    """
    tokens = [v for v in model.graph.inputs if dims(v) == (BATCH, TIME)]
    logits = model.graph.outputs[0]
    integer = [v for v in tokens if v.dtype in (ir.DataType.INT64, ir.DataType.INT32)]
    models_language = len(integer) == 1 and logits.name == LOGITS and len(dims(logits) or ()) == 3
    return integer[0].name if models_language else None


def _loss(batch: Batch, ids: str, logits: Array) -> tuple[float, int]:
    """Negative log-likelihood of each next token, summed, and their number."""
    tokens = batch.inputs[ids]
    lengths = np.full(batch.rows, batch.steps) if batch.lengths is None else batch.lengths
    total, count = 0.0, 0
    for row, length in enumerate(lengths):
        wanted = torch.from_numpy(tokens[row, 1:length]).long()
        scores = torch.from_numpy(logits[row, : len(wanted)]).float()
        total += float(torch.nn.functional.cross_entropy(scores, wanted, reduction="sum"))
        count += len(wanted)
    return total, count
