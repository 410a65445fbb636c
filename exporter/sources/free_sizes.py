"""Sizes that a graph file fixes and its graph does not need: made free where running it proves so.

Exporters fix batch and time to those of their example.  The graph is run with these axes free, at
more rows and at more and fewer tokens.  Rows are free if each block of them gives what the graph
gives for that block at the sizes of its file; time, if in addition the results for the first tokens
do not change with those that follow.  Whatever was computed from the fixed sizes shows: a shape in
a constant, a table that was cut, a mask.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.passes import evaluate
from intaglio.state import BATCH, TIME

from .input_spec import InputSpec, fixed_axis, sampler

CLOSE = 1e-4  # of the largest value: beyond what sums in another order make
MORE_ROWS, MORE_TOKENS = 1, 5

Arrays = dict[str, npt.NDArray[Any]]
Run = Callable[[Arrays], Arrays]


def freed(
    model: ir.Model, specs: Sequence[InputSpec]
) -> tuple[tuple[InputSpec, ...], tuple[str, ...]]:
    """The inputs with those of batch and time free that running the graph proves to be.

    Args:
        model: a graph, whose values lose the shapes that its file gives them if an axis is freed.
        specs: its inputs, with the sizes of the file.

    Returns:
        The inputs, and the symbols of the axes that are free now; none where nothing is proven.
    """
    sizes = _fixed(specs)
    if sizes is None:
        return tuple(specs), ()
    sequences = any(fixed_axis(spec) is not None for spec in specs)
    for symbols in ((BATCH, TIME), (TIME,), (BATCH,)) if sequences else ((BATCH,),):
        free = tuple(_with(spec, sizes, symbols) for spec in specs)
        if _proven(model, specs, free, sizes, symbols):
            set_free(model, free)
            return free, symbols
    return tuple(specs), ()


def _fixed(specs: Sequence[InputSpec]) -> Mapping[str, int] | None:
    """Rows and tokens that the file fixes, where all inputs have the same."""
    shapes = [spec.shape for spec in specs if len(spec.shape) > 1]
    if not shapes or any(isinstance(dim, str) for shape in shapes for dim in shape):
        return None
    rows, tokens = {shape[0] for shape in shapes}, {shape[1] for shape in shapes}
    if len(rows) > 1 or len(tokens) > 1:
        return None
    (batch,), (time,) = rows, tokens
    assert isinstance(batch, int)
    assert isinstance(time, int)
    return {BATCH: batch, TIME: time} if batch > 0 and time > 0 else None


def _with(spec: InputSpec, sizes: Mapping[str, int], symbols: Sequence[str]) -> InputSpec:
    """`spec` with the axes of `symbols` free."""
    if len(spec.shape) < 2:
        return spec
    names = [symbol if symbol in symbols else sizes[symbol] for symbol in (BATCH, TIME)]
    return replace(spec, shape=(*names, *spec.shape[2:]))


def set_free(model: ir.Model, specs: Sequence[InputSpec]) -> None:
    """Give the inputs of a graph their shapes, and forget those of all that follows."""
    for value, spec in zip(model.graph.inputs, specs, strict=True):
        value.shape = ir.Shape(list(spec.shape))
    for node in model.graph:
        for value in node.outputs:
            value.shape = None


def _proven(
    model: ir.Model,
    fixed: Sequence[InputSpec],
    free: Sequence[InputSpec],
    sizes: Mapping[str, int],
    symbols: Sequence[str],
) -> bool:
    """Whether the graph with free axes gives what it gives at the sizes of its file."""
    wide = model.clone()
    set_free(wide, free)
    try:
        narrow_run, run = _runner(model), _runner(wide)
        batch, time = sizes[BATCH], sizes[TIME]
        rows = 2 * batch + MORE_ROWS if BATCH in symbols else batch
        counts = (time, time + MORE_TOKENS, 2 * time + 1, *range(1, min(time, 3)))
        for tokens in counts if TIME in symbols else (time,):
            longest = max(tokens, time)
            drawn = sampler(free)({BATCH: rows, TIME: longest}, tokens)
            inputs = {name: value.numpy() for name, value in drawn.items()}
            got = run(_cut(inputs, fixed, slice(0, rows), slice(0, tokens)))
            for first in (0, batch, rows - batch) if BATCH in symbols else (0,):
                block = slice(first, first + batch)
                wanted = narrow_run(_cut(inputs, fixed, block, slice(0, time)))
                if not _same(got, wanted, (rows, tokens), (batch, time), first, symbols):
                    return False
    except Exception:  # noqa: BLE001  a graph that needs its sizes fails in any way
        return False
    return True


def _runner(model: ir.Model) -> Run:
    engine = evaluate.session(model)
    names = [output.name for output in engine.get_outputs()]
    return lambda inputs: dict(zip(names, engine.run(names, inputs), strict=True))


def _cut(inputs: Arrays, specs: Sequence[InputSpec], rows: slice, tokens: slice) -> Arrays:
    """Some rows and the first tokens of inputs that have both."""
    both = {spec.name for spec in specs if len(spec.shape) > 1}
    return {n: np.ascontiguousarray(x[rows, tokens]) if n in both else x for n, x in inputs.items()}


def _same(
    got: Arrays,
    wanted: Arrays,
    has: tuple[int, int],
    file: tuple[int, int],
    first: int,
    symbols: Sequence[str],
) -> bool:
    """Whether the block of rows from `first` on, and the tokens that both runs have, agree."""
    tokens = min(has[1], file[1])
    for name, array in wanted.items():
        found = got[name]
        if array.ndim < 1 + (TIME in symbols) or found.ndim != array.ndim:
            return False
        lead = (has[0], has[1]) if TIME in symbols else (has[0],)
        own = file if TIME in symbols else file[:1]
        if found.shape != (*lead, *array.shape[len(lead) :]) or array.shape[: len(own)] != own:
            return False
        a = found[first : first + file[0]].astype(np.float64)
        b = array.astype(np.float64)
        if TIME in symbols:
            a, b = a[:, :tokens], b[:, :tokens]
        scale = float(np.abs(b[np.isfinite(b)]).max(initial=0))
        if not np.allclose(a, b, rtol=0, atol=CLOSE * scale, equal_nan=True):
            return False
    return True
