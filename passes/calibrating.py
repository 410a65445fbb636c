"""Learning from calibration data: graphs that run over it, and the statistics taken of that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from intaglio.errors import PassError
from intaglio.state import BATCH, PAST_LENGTH, TIME

from . import stepping
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
    return Replay(model, [_feeds(model, context, data.batches[index]) for index in chosen])


def _feeds(model: ir.Model, context: Context, batch: Batch) -> dict[str, Array]:
    feeds = dict(batch.inputs)
    if context.states:
        feeds |= stepping.first_states(context.states, batch.rows, batch.steps)
    if PAST_LENGTH in {value.name for value in model.graph.inputs}:
        feeds[PAST_LENGTH] = np.zeros(batch.rows, np.int64)
    return feeds


def statistics(run: Replay, value: ir.Value, calibration: Calibration, who: str) -> Statistics:
    """Statistics of `value`, which the replay has reached.

    Raises:
        PassError: it holds NaN or infinity; the layer that it goes into, `who`, is named.
    """
    held = set(calibration.held_out)
    sums: dict[bool, Tensor] = {}
    counts = {False: 0, True: 0}
    for index, array in enumerate(run.values(value.name or "")):
        x = torch.from_numpy(calibration.batches[index].valid(array)).double()
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
    if _is_language_model(model):
        losses, count = 0.0, 0
        for index, outputs in zip(batches, run.outputs(batches), strict=True):
            loss, tokens = _loss(data.batches[index], outputs[model.graph.outputs[0].name or ""])
            losses, count = losses + loss, count + tokens
        return {"perplexity": math.exp(min(losses / count, 700.0)) if count else None}
    plain = replay(model, context)
    wrong = whole = 0.0
    for got, wanted in zip(run.outputs(batches), plain.outputs(batches), strict=True):
        for name in wanted.keys() - {state.output for state in context.states}:
            wrong += float(np.square(got[name].astype(np.float64) - wanted[name]).sum())
            whole += float(np.square(wanted[name].astype(np.float64)).sum())
    return {"error": wrong / whole if whole else None}


def _is_language_model(model: ir.Model) -> bool:
    """Whether `model` maps token ids [batch, time] to logits [batch, time, vocabulary]."""
    tokens = [v for v in model.graph.inputs if dims(v) == (BATCH, TIME)]
    logits = model.graph.outputs[0]
    integer = [v for v in tokens if v.dtype in (ir.DataType.INT64, ir.DataType.INT32)]
    return len(integer) == 1 and logits.name == LOGITS and len(dims(logits) or ()) == 3


def _loss(batch: Batch, logits: Array) -> tuple[float, int]:
    """Negative log-likelihood of each next token, summed, and their number."""
    (tokens,) = (x for x in batch.inputs.values() if x.shape == (batch.rows, batch.steps))
    lengths = np.full(batch.rows, batch.steps) if batch.lengths is None else batch.lengths
    total, count = 0.0, 0
    for row, length in enumerate(lengths):
        wanted = torch.from_numpy(tokens[row, 1:length]).long()
        scores = torch.from_numpy(logits[row, : len(wanted)]).float()
        total += float(torch.nn.functional.cross_entropy(scores, wanted, reduction="sum"))
        count += len(wanted)
    return total, count
