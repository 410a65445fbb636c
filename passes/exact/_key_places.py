"""Where entries along the keys come from, and what joins those of tokens to others."""

import contextlib
from collections.abc import Sequence

import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.analysis.pair_rules import Places, inputs_of
from intaglio.passes.analysis.pairs import Axes, surplus, time_axes
from intaglio.passes.analysis.time_rules import ELEMENTWISE
from intaglio.passes.graph import (
    Dim,
    attribute,
    dims,
    input_of,
    integers,
)
from intaglio.state import TIME

NORMS = ("LayerNormalization", "RMSNormalization")
ALONE = frozenset(
    "Concat Expand Gemm MatMul ReduceMax ReduceMin ReduceSum Reshape Slice Softmax Squeeze "
    "Transpose Unsqueeze".split()
)
"""Operators of which `inputs_of` tells, for one axis, where its entries come from, each alone."""


class UnfitError(Exception):
    """Entries along the keys are combined, or joined in another way, or it is not known."""


def lead(value: ir.Value, axis: int) -> tuple[int, int]:
    """How many entries of no token `value` has before and behind those of tokens.

    Raises:
        UnfitError: if it is not joined of them.
    """
    node, shape = value.producer(), dims(value) or ()
    extra = surplus(shape[axis])
    if extra == 0:
        return 0, 0
    if node is None or node.domain or extra is None:
        raise UnfitError
    if node.op_type == "Concat" and joins_along(node) == axis:
        before, inner, behind = joined_parts(node, axis)
        first, last = lead(inner, axis)
        return first + count_along(before, axis), last + count_along(behind, axis)
    if node.op_type == "Pad":
        (first, last), pads = lead(first_of(node), axis), pads_of(node)
        return first + pads[axis], last + pads[axis + len(shape)]
    for given, place in zip(node.inputs, places_of(node, axis), strict=True):
        if given is not None and place is not None:
            try:
                return lead(given, place)
            except UnfitError:
                continue
    raise UnfitError


def _picks(node: ir.Node) -> bool:
    """Whether `node` takes entries of a table, or along an axis of no tokens."""
    picked = attribute(node, "axis", 0) % len(dims(input_of(node, 0)) or ("?",))
    return node.op_type == "Gather" and picked not in time_axes(node.inputs[0])


def joins_along(node: ir.Node) -> int:
    return int(attribute(node, "axis") % len(dims(node.outputs[0]) or ()))


def first_of(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None:
        raise UnfitError
    return value


def with_size(value: ir.Value, axis: int, size: Dim) -> list[Dim]:
    """The shape of `value` with `size` along `axis`."""
    return [size if at == axis else dim for at, dim in enumerate(dims(value) or ())]


def shape_of_part(
    node: ir.Node,
    inputs: Sequence[ir.Value | None],
    places: Sequence[int | None],
    axis: int,
    size: Dim,
) -> list[Dim]:
    """The shape of a part of what `node` gives; what was filled has one entry along other axes."""
    given = [(value, dims(value) or ()) for value in inputs if value is not None]
    if node.op_type in ELEMENTWISE:
        met = met_shape([shape for _, shape in given])
        if met is None:
            raise UnfitError
        return met
    if node.op_type == "MatMul":
        left, right = (shape for _, shape in given)
        front = met_shape([left[:-2], right[:-2]])
        if front is None:
            raise UnfitError
        return [*front, left[-2], right[-1]]
    for value, old, place in zip(inputs, node.inputs, places, strict=True):
        if place is None or old is None or list(dims(value) or ()) == with_size(old, place, size):
            continue
        if node.op_type == "Transpose":
            perm = attribute(node, "perm") or reversed(range(len(given[0][1])))
            return [given[0][1][at] for at in perm]
        if node.op_type == "Unsqueeze":
            rank = len(dims(node.outputs[0]) or ())
            rest, added = iter(given[0][1]), [at % rank for at in integers(node.inputs[1]) or ()]
            return [1 if at in added else next(rest) for at in range(rank)]
        if node.op_type != "Expand":
            raise UnfitError
    return with_size(node.outputs[0], axis, size)


def count_along(values: Sequence[ir.Value | None], axis: int) -> int:
    """How many entries `values` have along `axis` together."""
    sizes = [
        size
        for value in values
        if isinstance(size := (dims(value) or ("?",) * (axis + 1))[axis], int)
    ]
    if len(sizes) < len(values):
        raise UnfitError
    return sum(sizes)


def joined_parts(
    node: ir.Node, axis: int
) -> tuple[Sequence[ir.Value | None], ir.Value, Sequence[ir.Value | None]]:
    """What a Concat puts before the part that has tokens, that part, and what it puts behind."""
    timed = [at for at, one in enumerate(node.inputs) if TIME in str((dims(one) or ())[axis])]
    inner = node.inputs[timed[0]] if len(timed) == 1 else None
    if inner is None:
        raise UnfitError
    return node.inputs[: timed[0]], inner, node.inputs[timed[0] + 1 :]


def pads_of(node: ir.Node) -> list[int]:
    """How much a Pad of one number puts before all axes, and behind."""
    rank = len(dims(node.outputs[0]) or ())
    given, axes = integers(node.inputs[1]), input_of(node, 3)
    picked = list(range(rank)) if axes is None else integers(axes)
    if given is None or picked is None or attribute(node, "mode", "constant") != "constant":
        raise UnfitError
    found = [0] * (2 * rank)
    for at, axis in enumerate(picked):
        found[axis % rank], found[axis % rank + rank] = given[at], given[at + len(picked)]
    return found


def places_of(node: ir.Node, axis: int) -> list[int | None]:
    """The axis of each input of `node` that becomes `axis` of its result, each entry alone.

    Raises:
        UnfitError: if entries are combined, or it is not known that they are not.
    """
    rank = len(dims(node.outputs[0]) or ())
    along = attribute(node, "axis", -1)
    found: Places | None = None
    if node.op_type in NORMS and len(node.outputs) == 1 and axis < along % rank:
        found = [Axes(key=axis), *[None] * (len(node.inputs) - 1)]
    elif node.op_type in ALONE | ELEMENTWISE or _picks(node):
        with contextlib.suppress(PassError):
            found = inputs_of(node, Axes(key=axis))
    places = [None if one is None else one.key for one in found or ()]
    if all(place is None for place in places):
        raise UnfitError
    return places


def met_shape(shapes: list[tuple[Dim, ...]]) -> list[Dim] | None:
    """The shape of values that meet entry by entry; None where they do not."""
    rank = max(map(len, shapes))
    found: list[Dim] = []
    for column in zip(*[(1,) * (rank - len(shape)) + shape for shape in shapes], strict=True):
        wide = {dim for dim in column if dim != 1}
        if len(wide) > 1:
            return None
        found.append(wide.pop() if wide else 1)
    return found
