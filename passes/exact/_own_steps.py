"""What makes a graph with states of its own a step graph, measured from its initial states on.

Rows must not meet, and tokens in parts must give what they give at once.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes import evaluate, stepping
from intaglio.passes.base import Context
from intaglio.passes.graph import dims
from intaglio.passes.stepping import Array
from intaglio.quiet import summary
from intaglio.state import BATCH, PAST_LENGTH, TIME

ROWS, TOKENS, STEPS = 3, 24, 4
LIMIT = 1e-3  # of the largest: a row or a part that meets another is wrong by far more


def check_rows(model: ir.Model, context: Context) -> None:
    """Hold the graph to rows that do not meet: each alone gives what it gives among others.

    Raises:
        PassError: if one does not, or the graph does not run.
    """
    if context.batch is not None:
        return
    parts = [slice(None), *(slice(row, row + 1) for row in range(ROWS))]
    stepped = [_steps(model, context, ROWS, part) for part in parts]
    for together, *alone in zip(*stepped, strict=True):  # side by side: states may be large
        for row, name in ((row, name) for row in range(ROWS) for name in together):
            axis, whole = _axis(model, name, BATCH), together[name]
            mine = whole if axis is None else whole.take(range(row, row + 1), axis)
            if not _agree(mine, alone[row][name]):
                raise PassError(
                    f"{name!r} of one row depends on the other rows of the batch, which a "
                    "session must be able to run apart. Keep rows apart in the model (batch "
                    "norms in eval mode, no means over the batch), or name the axis that is "
                    f"the batch: --axes {next(iter(_own_inputs(model, context)))}:..."
                )


def check_parts(model: ir.Model, context: Context) -> None:
    """Hold a graph with a time axis to the same result however its tokens are split.

    Raises:
        PassError: if a split gives something else, or the graph does not run.
    """
    timed = [v for v in _own_inputs(model, context).values() if TIME in (dims(v) or ())]
    if not timed:
        return
    inputs = stepping.random_inputs(
        model,
        context.states,
        {BATCH: context.batch or ROWS, TIME: TOKENS},
        defaults=context.defaults,
    )
    session = evaluate.session(model)
    rolled = []
    for parts in ([TOKENS], [1] * TOKENS, [5, TOKENS - 6, 1]):
        try:
            rolled.append(stepping.roll(model, context.states, inputs, parts, session))
        except Exception as error:  # ONNX Runtime's own kinds
            raise PassError(f"{TOKENS} tokens in parts of {parts} do not run ({summary(error)}). "
                            f"{_fixed(timed)}") from error  # fmt: skip
        for name, array in rolled[0].items():
            if not _agree(rolled[-1][name], array):
                raise PassError(
                    f"{name!r} is something else when {TOKENS} tokens are given in the parts "
                    f"{parts}: what the model carries does not tell all that earlier tokens left. "
                    f"{_fixed(timed)}"
                )


def _fixed(timed: Sequence[ir.Value]) -> str:
    """How to say that one call takes a fixed number of entries."""
    name, shape = timed[0].name, dims(timed[0]) or ()
    words = "x".join("16" if dim == TIME else str(dim) for dim in shape)
    return f"If each call takes a fixed number of them, 16 perhaps, say so: --axes {name}:{words}."


def _own_inputs(model: ir.Model, context: Context) -> dict[str, ir.Value]:
    """The inputs that are no states."""
    carried = {spec.input for spec in context.states}
    return {str(v.name): v for v in model.graph.inputs if v.name not in carried}


def _steps(
    model: ir.Model, context: Context, batch: int, rows: slice
) -> Iterator[Mapping[str, Array]]:
    """Outputs and states of some rows after each of a few steps."""
    session = evaluate.session(model)
    names = [output.name for output in session.get_outputs()]
    wanted = {entry.name for entry in session.get_inputs()}
    count = len(range(batch)[rows])
    carried = stepping.first_states(context.states, count, TOKENS)
    following = {spec.output: spec.input for spec in context.states}
    for step in range(STEPS):
        drawn = stepping.random_inputs(
            model, context.states, {BATCH: batch, TIME: 3}, seed=step, defaults=context.defaults
        )
        own = {name: _rows(model, name, array, rows) for name, array in drawn.items()}
        past = {PAST_LENGTH: np.full(count, step, np.int64)}
        feeds = {n: x for n, x in {**own, **carried, **past}.items() if n in wanted}
        try:
            results = dict(zip(names, session.run(names, feeds), strict=True))
        except Exception as error:
            raise PassError(
                f"a step of {count} rows does not run: {summary(error)}. Name the axes of the "
                "inputs: --axes NAME:batchx..."
            ) from error
        yield results
        carried = {following[name]: results[name] for name in following}


def _rows(model: ir.Model, name: str, array: Array, rows: slice) -> Array:
    axis = _axis(model, name, BATCH)
    return array if axis is None else array[(*[slice(None)] * axis, rows)]


def _axis(model: ir.Model, name: str, symbol: str) -> int | None:
    values = (*model.graph.inputs, *model.graph.outputs)
    shape = next(dims(value) or () for value in values if value.name == name)
    return shape.index(symbol) if symbol in shape else None


def _agree(a: Array, b: Array) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    scale = float(np.abs(b[np.isfinite(b)].astype(np.float64)).max(initial=0.0))
    return bool(np.allclose(a, b, rtol=0, atol=LIMIT * scale, equal_nan=True))
