"""Second moments of channels over the calibration data, streamed, in float64; and blocks.

What is kept of a batch is a sum of products of channels; one replay of the dense graph gathers all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes import calibrating
from intaglio.passes.analysis.pairs_of_matrices import block_of
from intaglio.passes.base import Context
from intaglio.passes.calibration import Batch, Calibration
from intaglio.passes.graph import dims, module_of
from intaglio.passes.replay import Replay

from ._junctions import Junction
from ._work import Work

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A moment to take of `value`: of all its channels, or `by_head` of a value by heads.

    `node` reads it.  With `squares`, the products of different channels are left out.
    """

    key: str
    node: ir.Node
    value: ir.Value
    by_head: bool = False
    squares: bool = False


def moments(
    model: ir.Model, context: Context, wanted: Sequence[Wanted], who: str
) -> dict[str, Array]:
    """The mean products of channels over the tokens that are fitted, by key.

    [K, K] of a value [..., K]; of one by heads, [batch, heads, time, K], [heads, K, K]; the
    diagonals alone of squares.  Finished ones are taken from the work folder.

    Raises:
        PassError: a value holds NaN or infinity.
    """
    data = context.calibration
    assert data is not None
    place = {node: index for index, node in enumerate(model.graph)}
    ordered = sorted(wanted, key=lambda each: place[each.node])
    work = Work(context.work, model, {"pass": who, "data": data.sha256})
    run: Replay | None = None
    found: dict[str, Array] = {}
    for index, each in enumerate(ordered):
        work.advance({"moment": each.key, "squares": each.squares})
        kept = work.load()
        if kept is None:
            if context.progress is not None:
                said = f"{who} {each.key}, {index + 1} of {len(ordered)}"
                context.progress(said, index / len(ordered))
            run = calibrating.replay(model, context, data.fitted) if run is None else run
            run.run_to(each.node)
            kept = {"moment": _moment(run, each, data)}
            work.save(kept)
        found[each.key] = kept["moment"]
    if run is not None:
        run.close()
    return found


def junction_moments(
    model: ir.Model, context: Context, needed: Sequence[Junction], who: str
) -> dict[Junction, dict[str, Array]]:
    """Of each junction, in the order of the graph: `gram`, E[x x^T], and those of derivatives.

    `between.I` is E[d d^T] of all derivatives of the I-th value between, [m N, m N].

    Raises:
        PassError: a value holds NaN or infinity.
    """
    data = context.calibration
    assert data is not None
    work = Work(context.work, model, {"pass": who, "data": data.sha256})
    run: Replay | None = None
    found = {}
    for index, junction in enumerate(needed):
        path = junction.readers[0].path
        work.advance({"junction": path, "value": junction.x.name})
        kept = work.load()
        if kept is None:
            if context.progress is not None:
                said = f"{who} {path}, {index + 1} of {len(needed)}"
                context.progress(said, index / len(needed))
            run = calibrating.replay(model, context, data.fitted) if run is None else run
            run.run_to(junction.readers[0].node)
            kept = _of_junction(run, junction, data)
            work.save(kept)
        found[junction] = kept
    if run is not None:
        run.close()
    return found


def _of_junction(run: Replay, junction: Junction, data: Calibration) -> dict[str, Array]:
    sums: dict[str, Array] = {}
    tokens = 0
    arrays = run.values(junction.x.name or "")
    for number, array in zip(data.fitted, arrays, strict=True):
        x = _flat(junction.x, array, data.batches[number])
        parts = {"gram": x, **_derivatives(junction, x)}
        for name, part in parts.items():
            product = part.T @ part
            if not np.isfinite(product).all():
                raise PassError(_not_finite(junction.readers[0].path, number))
            sums[name] = sums.get(name, 0.0) + product
        tokens += len(x)
    return {name: total / max(tokens, 1) for name, total in sums.items()}


def _derivatives(junction: Junction, x: Array) -> dict[str, Array]:
    return {f"between.{i}": each.derivatives(x) for i, each in enumerate(junction.between)}


def _not_finite(who: str, number: int) -> str:
    return (
        f"{who}: its values over the calibration data hold NaN or infinity (batch "
        f"{number}). Look for such values in the data, and whether the model runs on it."
    )


def _moment(run: Replay, wanted: Wanted, data: Calibration) -> Array:
    total: Array | None = None
    tokens = 0
    values = run.values(wanted.value.name or "")
    for number, array in zip(data.fitted, values, strict=True):
        batch = data.batches[number]
        x = _by_head(array, batch) if wanted.by_head else _flat(wanted.value, array, batch)
        part = (x * x).sum(-2) if wanted.squares else np.swapaxes(x, -1, -2) @ x
        if not np.isfinite(part).all():
            raise PassError(_not_finite(wanted.key, number))
        total = part if total is None else total + part
        tokens += x.shape[-2]
    assert total is not None
    mean: Array = total / max(tokens, 1)
    return mean


def _flat(value: ir.Value, array: Array, batch: Batch) -> Array:
    return calibrating.entries(value, array, batch).astype(np.float64)


def _by_head(array: Array, batch: Batch) -> Array:
    """[heads, tokens, K] of [batch, heads, time, K], without padding."""
    rows, heads, time, size = array.shape
    turned = array.transpose(1, 0, 2, 3).astype(np.float64)
    if batch.lengths is None or rows != batch.rows or time != batch.steps:
        return turned.reshape(heads, rows * time, size)
    valid = np.arange(time) < batch.lengths[:, None]
    return turned[:, valid]


def importance(model: ir.Model, context: Context, blocks: Sequence[str]) -> list[float] | None:
    """1 - cos between what goes into each block and what leaves it, in the mean over tokens.

    None where the streams between the blocks are not found: each block has to return one value
    that whatever follows reads, of the shape of the one before it.
    """
    data = context.calibration
    assert data is not None
    streams = list(_streams(model, blocks))
    if len(streams) != len(blocks) + 1 or len({dims(v) for v, _ in streams}) != 1:
        return None
    run = calibrating.replay(model, context, data.fitted)
    before: list[Array] | None = None
    found = []
    for value, reader in streams:
        run.run_to(reader)
        arrays = run.values(value.name or "")
        now = [
            _unit(calibrating.entries(value, array, data.batches[number]))
            for number, array in zip(data.fitted, arrays, strict=True)
        ]
        if before is not None:
            cosines = [(a * b).sum(-1) for a, b in zip(before, now, strict=True)]
            found.append(float(1 - np.concatenate(cosines).mean(dtype=np.float64)))
        before = now
    run.close()
    return found


def _unit(x: Array) -> Array:
    scale = np.linalg.norm(x, axis=-1, keepdims=True)
    unit: Array = x / np.maximum(scale, 1e-30)
    return unit


def _streams(model: ir.Model, blocks: Sequence[str]) -> Iterator[tuple[ir.Value, ir.Node]]:
    """What goes into the first block, and what leaves each, with the first node that reads it."""
    place = {node: index for index, node in enumerate(model.graph)}
    owner = {node: block_of(module_of(node)) for node in model.graph}
    width = _width(model, blocks)
    for number, block in enumerate(blocks):
        inside = [node for node in model.graph if owner[node] == block]
        entering = {
            value: node
            for node in reversed(inside)
            for value in node.inputs
            if value is not None
            and _is_stream(value, width)
            and owner.get(value.producer()) != block  # type: ignore[arg-type]
        }
        leaving = {
            value: min(
                (n for n in value.consumers() if owner.get(n) != block), key=place.__getitem__
            )
            for node in inside
            for value in node.outputs
            if _is_stream(value, width)
            and any(owner.get(n) != block and n in place for n in value.consumers())
        }
        if len(leaving) != 1 or not entering:
            return
        if number == 0:
            yield min(entering.items(), key=lambda pair: place[pair[1]])
        yield from leaving.items()


def _width(model: ir.Model, blocks: Sequence[str]) -> int | None:
    """The size of the last axis of what leaves the last block."""
    for node in reversed(list(model.graph)):
        if block_of(module_of(node)) == blocks[-1]:
            size = (dims(node.outputs[0]) or (None,))[-1]
            return size if isinstance(size, int) else None
    return None


def _is_stream(value: ir.Value, width: int | None) -> bool:
    shape = dims(value) or ()
    return len(shape) == 3 and shape[-1] == width and value.producer() is not None


def told(data: Calibration, channels: Mapping[str, int]) -> list[str]:
    """What the user should hear where there are fewer tokens than channels."""
    tokens = data.tokens(data.fitted)
    wide = [path for path, count in channels.items() if count > tokens]
    if not wide:
        return []
    others = f" and {len(wide) - 1} more" if len(wide) > 1 else ""
    note = (
        f"The calibration data has {tokens} tokens to learn from, fewer than the channels of "
        f"{wide[0]}{others}: directions that it says nothing of are damped. Give more data."
    )
    return [note]
