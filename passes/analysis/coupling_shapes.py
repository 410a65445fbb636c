"""How each operator passes permutations of its inputs on to its outputs.

A rule says what the axes of the outputs are in terms of those of the inputs, and which of these
must be permuted alike or not at all, so that the operator on permuted inputs gives the permuted
outputs.  An operator without a rule fixes whatever it touches.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from intaglio.passes.graph import (
    attribute,
    constant,
    dims,
    input_of,
    integers,
)

from .channels import Channels, add, cut, factor, fix, fixed, multiply, unify

Array = npt.NDArray[Any]
Axes = list[Channels]
Known = Callable[[ir.Value], Axes]
Rule = Callable[[ir.Node, Known], list[Axes]]


class UncoupledError(Exception):
    """A rule does not cover a node: all that it touches is fixed."""


def taken(node: ir.Node, index: int, known: Known) -> Axes:
    """The axes of an input that must be there."""
    value = input_of(node, index)
    if value is None:
        raise UncoupledError
    return known(value)


def broadcast(shapes: Sequence[Axes]) -> Axes:
    """Axes of what is computed entry by entry from values of these axes."""
    rank = max(len(axes) for axes in shapes)
    made = []
    for place in range(-rank, 0):
        here = [axes[place] for axes in shapes if len(axes) >= -place and axes[place].size != 1]
        for other in here[1:]:
            unify(here[0], other)
        made.append(here[0] if here else fixed(1))
    return made


def elementwise(node: ir.Node, known: Known) -> list[Axes]:
    """Entry by entry, with the broadcasts of numpy."""
    return [broadcast([known(value) for value in node.inputs if value is not None])]


def entrywise(node: ir.Node, known: Known) -> list[Axes]:
    """Each entry by itself, other inputs being numbers; or along axes in any order."""
    return [taken(node, 0, known)]


def mat_mul(node: ir.Node, known: Known) -> list[Axes]:
    """What is summed over is permuted alike on both sides."""
    a, b = (taken(node, index, known) for index in (0, 1))
    if not a or not b:
        raise UncoupledError
    left, right = a[:-1], b[:-2] if len(b) > 1 else []
    unify(a[-1], b[-2] if len(b) > 1 else b[0])
    rows = left[-1:]
    batch = broadcast([left[:-1], right]) if len(left) > 1 or right else []
    return [[*batch, *rows, *(b[-1:] if len(b) > 1 else [])]]


def gemm(node: ir.Node, known: Known) -> list[Axes]:
    """A product of matrices, transposed or not, and a bias."""
    a, b = (taken(node, index, known) for index in (0, 1))
    a = a[::-1] if attribute(node, "transA", 0) else a
    b = b[::-1] if attribute(node, "transB", 0) else b
    unify(a[1], b[0])
    made = [a[0], b[1]]
    if input_of(node, 2) is not None:
        broadcast([made, taken(node, 2, known)])
    return [made]


def transpose(node: ir.Node, known: Known) -> list[Axes]:
    """Axes in another order."""
    axes = taken(node, 0, known)
    order = attribute(node, "perm")
    return [axes[::-1] if order is None else [axes[axis] for axis in order]]


Size = tuple[int, tuple[str, ...]]


def _sizes(shape: Sequence[int | str]) -> Iterator[Size]:
    """The products of the first dimensions, from none to all, each in one form."""
    number, symbols = 1, []
    yield 1, ()
    for dim in shape:
        for part in str(dim).split("*"):
            if part.isdigit():
                number *= int(part)
            else:
                symbols.append(part)
        yield number, tuple(sorted(symbols))


def reshape(node: ir.Node, known: Known) -> list[Axes]:
    """Axes that are merged or cut, run by run of dimensions that hold the same entries."""
    value, result = input_of(node, 0), node.outputs[0]
    before, after = dims(value), dims(result)
    if value is None or before is None or after is None or 0 in (*before, *after):
        raise UncoupledError
    axes = [axis for axis, dim in zip(known(value), before, strict=True) if dim != 1]
    before = tuple(dim for dim in before if dim != 1)
    wanted = [dim for dim in after if dim != 1]
    starts, ends = list(_sizes(before)), list(_sizes(wanted))
    if starts[-1] != ends[-1]:
        raise UncoupledError
    made: Axes = []
    at = (0, 0)
    while at != (len(before), len(wanted)):
        end = next(
            (i, j)
            for i in range(at[0] + 1, len(starts))
            for j in range(at[1] + 1, len(ends))
            if starts[i] == ends[j]
        )
        made += _regroup(axes[at[0] : end[0]], wanted[at[1] : end[1]])
        at = end
    rest = iter(made)
    return [[fixed(1) if dim == 1 else next(rest) for dim in after]]


def _regroup(axes: Axes, wanted: Sequence[int | str]) -> Axes:
    """The axes `axes` as ones of the sizes `wanted`, which hold as many entries."""
    if len(axes) == len(wanted) == 1:
        return axes
    if any(axis.size is None for axis in axes) or not all(isinstance(d, int) for d in wanted):
        for axis in axes:
            fix(axis)
        return [fixed(dim if isinstance(dim, int) else None) for dim in wanted]
    rest, made = multiply(axes), []
    for dim in wanted[:-1]:
        outer, rest = factor(rest, int(dim))
        made.append(outer)
    return [*made, rest]


def expand(node: ir.Node, known: Known) -> list[Axes]:
    """What is repeated along an axis is the same in any order."""
    axes, shape = taken(node, 0, known), dims(node.outputs[0])
    if shape is None:
        raise UncoupledError
    own = [*[fixed(1)] * (len(shape) - len(axes)), *axes]
    return [
        [
            Channels(dim if isinstance(dim, int) else None) if axis.size == 1 else axis
            for axis, dim in zip(own, shape, strict=True)
        ]
    ]


def axis_of(node: ir.Node, rank: int, name: str = "axis", default: int = 0) -> int:
    """The axis that an attribute names, counted from the front."""
    axis: int = attribute(node, name, default)
    return axis % rank


def concat(node: ir.Node, known: Known) -> list[Axes]:
    """One after the other along an axis, alike along the others."""
    shapes = [taken(node, index, known) for index in range(len(node.inputs))]
    axis = axis_of(node, len(shapes[0]))
    others = [[each for i, each in enumerate(axes) if i != axis] for axes in shapes]
    made = broadcast(others) if others[0] else []
    along = [axes[axis] for axes in shapes]
    return [[*made[:axis], add(along), *made[axis:]]]


def split(node: ir.Node, known: Known) -> list[Axes]:
    """Consecutive parts of an axis."""
    axes = taken(node, 0, known)
    axis = axis_of(node, len(axes))
    sizes = [(dims(value) or ())[axis] for value in node.outputs]
    if axes[axis].size is None or not all(isinstance(size, int) for size in sizes):
        return _all_but(axes, axis, sizes)
    parts = cut(axes[axis], [int(size) for size in sizes])
    return [[*axes[:axis], part, *axes[axis + 1 :]] for part in parts]


def _all_but(axes: Axes, axis: int, sizes: Sequence[int | str]) -> list[Axes]:
    """Results that differ from an input in the size of one axis, which is fixed."""
    fix(axes[axis])
    kept = [size if isinstance(size, int) else None for size in sizes]
    return [[*axes[:axis], fixed(size), *axes[axis + 1 :]] for size in kept]


def slice_(node: ir.Node, known: Known) -> list[Axes]:
    """Parts of axes; every n-th entry is one of each row of a grid."""
    axes, shape = list(taken(node, 0, known)), dims(node.outputs[0])
    starts, ends = (constant(input_of(node, index)) for index in (1, 2))
    along = integers(input_of(node, 3))
    steps = integers(input_of(node, 4))
    if shape is None or (input_of(node, 3) is not None and along is None):
        raise UncoupledError
    if along is None:
        along = list(range(len(axes) if starts is None else starts.size))
    for place, axis in enumerate(axis % len(axes) for axis in along):
        dim = shape[axis]
        if axes[axis].size is None or starts is None or ends is None or not isinstance(dim, int):
            (axes,) = _all_but(axes, axis, [dim])
            continue
        step = 1 if steps is None else steps[place]
        first, last = (int(each.reshape(-1)[place]) for each in (starts, ends))
        start, end, _ = slice(first, last, step).indices(axes[axis].size or 0)
        axes[axis] = _cut_out(axes[axis], start, end, step)
    return [axes]


def _cut_out(channels: Channels, start: int, end: int, step: int) -> Channels:
    size = channels.size or 0
    if step == 1 and start < end:
        parts = [start, end - start, size - end]
        found = cut(channels, [part for part in parts if part])
        return found[1 if start else 0]
    if step > 1 and size % step == 0 and start < step and end > size - step + start:
        rows, among = factor(channels, size // step)
        fix(among)
        return rows
    fix(channels)
    return fixed(len(range(start, end, step)))


def gather(node: ir.Node, known: Known) -> list[Axes]:
    """One of an axis is picked by its place; what lies along the other axes is not touched."""
    axes, index = taken(node, 0, known), taken(node, 1, known)
    axis = axis_of(node, len(axes))
    for each in (axes[axis], *index):
        fix(each)
    return [[*axes[:axis], *index, *axes[axis + 1 :]]]


def reduce(node: ir.Node, known: Known) -> list[Axes]:
    """A sum, a product, a norm, a largest entry: the same in any order."""
    axes = taken(node, 0, known)
    given = input_of(node, 1)
    along = attribute(node, "axes") if given is None else integers(given)
    if along is None and (given is not None or attribute(node, "noop_with_empty_axes", 0)):
        raise UncoupledError
    gone = set(range(len(axes))) if along is None else {axis % len(axes) for axis in along}
    keep = attribute(node, "keepdims", 1)
    return [
        [
            fixed(1) if place in gone else axis
            for place, axis in enumerate(axes)
            if keep or place not in gone
        ]
    ]


def pad(node: ir.Node, known: Known) -> list[Axes]:
    """Entries before and behind an axis, which stay there."""
    axes, pads = list(taken(node, 0, known)), integers(input_of(node, 1))
    shape, along = dims(node.outputs[0]), integers(input_of(node, 3))
    if pads is None or shape is None or (along is None and input_of(node, 3) is not None):
        raise UncoupledError
    along = list(range(len(axes))) if along is None else [axis % len(axes) for axis in along]
    for place, axis in enumerate(along):
        before, after = pads[place], pads[place + len(along)]
        if not before and not after:
            continue
        if attribute(node, "mode", "constant") != "constant" or min(before, after) < 0:
            (axes,) = _all_but(axes, axis, [shape[axis]])
            continue
        around = [fixed(before)] if before else []
        axes[axis] = add([*around, axes[axis], *([fixed(after)] if after else [])])
    return [axes]


def along_axis(node: ir.Node, known: Known) -> list[Axes]:
    """Sums over all that come before along one axis."""
    axes, axis = taken(node, 0, known), integers(input_of(node, 1))
    if axis is None:
        raise UncoupledError
    fix(axes[axis[0] % len(axes)])
    return [axes]


def last_two(node: ir.Node, known: Known) -> list[Axes]:
    """Entries are told by their places on the last two axes."""
    axes = taken(node, 0, known)
    for axis in axes[-2:]:
        fix(axis)
    return [axes]


def sizes_alone(node: ir.Node, known: Known) -> list[Axes]:  # noqa: ARG001
    """What is made of sizes, which no permutation changes."""
    return [[fixed(d if isinstance(d, int) else None) for d in dims(v) or ()] for v in node.outputs]


def filled(node: ir.Node, known: Known) -> list[Axes]:  # noqa: ARG001
    """One number everywhere."""
    shape = dims(node.outputs[0])
    if shape is None:
        raise UncoupledError
    return [[Channels(dim if isinstance(dim, int) else None) for dim in shape]]


def constant_axes(array: Array) -> Axes:
    """Axes of a constant: fixed, but for those along which all entries are alike."""
    return [Channels(size, fixed=not _alike(array, axis)) for axis, size in enumerate(array.shape)]


def _alike(array: Array, axis: int) -> bool:
    return bool(array.size) and bool((array == array.take([0], axis)).all())
