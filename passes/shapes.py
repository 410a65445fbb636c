"""Types and shapes of every value of a training-form graph, found by running it.

What the standard's shape inference loses behind a Reshape, and what other exporters call by names
of their own, is measured: the graph runs on several sizes of its free axes with every value as an
output, and each dimension is the one of these that fits all runs: a number, a symbol as ``batch``
or ``height``, a product of symbols, one of them times a number, plus or minus a number, or divided
by one and rounded down, as strides do.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import prod

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.state import BATCH, TIME, entries_of

from . import evaluate, stepping
from .evaluate import Arrays
from .graph import attribute, dims, set_dims, subgraphs

Runs = Sequence[tuple[Mapping[str, int], Arrays]]

SIZES = ((2, 7), (3, 5), (5, 11), (4, 13))
"""(batch, time) of the runs: no multiple of one, and no sum with a number, is the other."""
SEQUENCES = frozenset(
    f"Sequence{what}" for what in ("Construct", "Empty", "Erase", "Insert", "Map")
) | {"SplitToSequence"}
"""Operators whose results are sequences of tensors, which have no shape."""
STRIDES = range(2, 33)
EXTRA = range(-32, 33)


def infer_shapes(model: ir.Model, runs: Runs | None = None) -> None:
    """Give every value of `model` its type and shape, in place.

    A dimension that depends on contents, or on sizes in another way, is left without a name.

    Args:
        model: its inputs have names for their free dimensions.
        runs: sizes of these and inputs of the sizes; random ones where none are given.
    """
    lists = [v for node in model.graph if node.op_type in SEQUENCES for v in node.outputs]
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for value in lists:  # which inference takes for tensors
        value.type = value.shape = None
    values = [
        value
        for node in model.graph
        if node.op_type not in SEQUENCES
        for value in node.outputs
        if value.name and isinstance(value.type, ir.TensorType | None)
    ]
    probe = _exposed(model, [str(value.name) for value in values])
    session = evaluate.session(probe)
    outputs = session.get_outputs()
    runs = _random_runs(model) if runs is None else runs
    made = [
        {
            out.name: (result.shape, result.dtype)
            for out, result in zip(outputs, session.run(None, dict(feeds)), strict=True)
            if hasattr(result, "shape")
        }
        for _, feeds in runs
    ]
    sizes = [sizes for sizes, _ in runs]
    for value in (*values, *model.graph.outputs):
        found = [run[value.name] for run in made if value.name in run]
        if len(found) == len(made) and len({len(shape) for shape, _ in found}) == 1:
            shapes = [shape for shape, _ in found]
            value.shape = ir.Shape([dimension(n, sizes) for n in zip(*shapes, strict=True)])
            value.type = value.type or ir.TensorType(ir.DataType.from_numpy(found[0][1]))


def _random_runs(model: ir.Model) -> Runs:
    others = dict.fromkeys(
        dim
        for value in model.graph.inputs
        for dim in dims(value) or ()
        if isinstance(dim, str) and entries_of(dim) is None
    )
    runs = []
    for place, (batch, time) in enumerate(SIZES):
        more = {s: 17 + 3 * place + 5 * i * (place + 1) for i, s in enumerate(others)}
        sizes = {**more, BATCH: batch, TIME: time}
        runs.append((sizes, stepping.random_inputs(model, [], sizes)))
    return runs


def _exposed(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of `model` that returns the values `names`."""
    clone = model.clone()
    values = {value.name: value for node in clone.graph for value in node.outputs}
    returned = {value.name for value in clone.graph.outputs}
    clone.graph.outputs.extend(values[name] for name in names if name not in returned)
    return clone


def dimension(found: Sequence[int], sizes: Sequence[Mapping[str, int]]) -> int | str | None:
    """What the sizes of one dimension in all runs are, as numbers and symbols."""
    if len(set(found)) == 1:
        return found[0]
    symbols = [s for s in sizes[0] if len({each[s] for each in sizes}) > 1]
    products = (
        subset for count in range(1, len(symbols) + 1) for subset in combinations(symbols, count)
    )
    for subset in products:
        lengths = [prod(each[s] for s in subset) for each in sizes]
        factor, rest = divmod(found[0], lengths[0]) if lengths[0] else (0, 1)
        if rest == 0 and all(n == factor * m for n, m in zip(found, lengths, strict=True)):
            name = "*".join(subset)
            return name if factor == 1 else f"{factor}*{name}"
    for symbol in symbols:
        lengths = [each[symbol] for each in sizes]
        fit = _sum(symbol, found, lengths) or _strided(symbol, found, lengths)
        if fit is not None:
            return fit
    return None


def _sum(symbol: str, found: Sequence[int], lengths: Sequence[int]) -> str | None:
    """A multiple of one symbol, and a number more or less."""
    low, high = (
        min(range(len(lengths)), key=lengths.__getitem__),
        max(range(len(lengths)), key=lengths.__getitem__),
    )
    factor, rest = divmod(found[high] - found[low], lengths[high] - lengths[low])
    extra = found[low] - factor * lengths[low]
    if (
        rest
        or factor < 1
        or any(n != factor * m + extra for n, m in zip(found, lengths, strict=True))
    ):
        return None
    name = symbol if factor == 1 else f"{factor}*{symbol}"
    return f"{name} {'+' if extra > 0 else '-'} {abs(extra)}"


def _strided(symbol: str, found: Sequence[int], lengths: Sequence[int]) -> str | None:
    """One symbol and a number more or less, divided by a number and rounded down."""
    pairs = list(zip(found, lengths, strict=True))
    for stride in STRIDES:
        for extra in sorted(EXTRA, key=abs):
            if all(n == (m + extra) // stride for n, m in pairs):
                inner = symbol if not extra else f"({symbol} {extra:+d})".replace("+", "+ ")
                return f"{inner.replace('-', '- ')}//{stride}"
    return None


def shape_bodies(model: ir.Model) -> None:
    """Say of every loop's body what it is given, in the names that the graph around it has."""
    for node in model.graph:
        for body in subgraphs(node) if node.op_type == "Scan" else ():
            count = attribute(node, "num_scan_inputs")
            axes = list(attribute(node, "scan_input_axes") or [0] * count)
            states = len(node.inputs) - count
            for index, (inner, outer) in enumerate(zip(body.inputs, node.inputs, strict=True)):
                shape = list(dims(outer) or ())
                if index >= states and shape:
                    del shape[axes[index - states]]
                if outer is not None and outer.shape is not None:
                    set_dims(inner, shape)
