"""Values along the keys, taken apart: entries of no token before, those of tokens, and behind.

What is computed entry by entry is computed for each part, back to where they were joined: by a
Concat, a Pad, a fill, as places that are counted, as rows of a table, in a triangle of a mask.  A
softmax over the keys is taken with those of no token last, of which it does not ask the order.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.analysis.bounds import contents
from intaglio.passes.analysis.pair_rules import Places, inputs_of
from intaglio.passes.analysis.pairs import Axes, surplus, time_axes
from intaglio.passes.analysis.time_rules import ELEMENTWISE
from intaglio.passes.graph import (
    Dim,
    Emitter,
    attribute,
    attributes_of,
    constant,
    dims,
    input_of,
    integers,
    producer,
)
from intaglio.state import TIME

INT64 = ir.DataType.INT64
LAST = int(np.iinfo(np.int64).max)
NORMS = ("LayerNormalization", "RMSNormalization")
ALONE = frozenset(
    "Concat Expand Gemm MatMul ReduceMax ReduceMin ReduceSum Reshape Slice Softmax Squeeze "
    "Transpose Unsqueeze".split()
)
"""Operators of which `inputs_of` tells, for one axis, where its entries come from, each alone."""


class UnfitError(Exception):
    """Entries along the keys are combined, or joined in another way, or it is not known."""


@dataclass(frozen=True)
class AlongKeys:
    """A value taken apart: before those of tokens, theirs, and behind; None for what is not."""

    before: ir.Value | None
    tokens: ir.Value
    behind: ir.Value | None

    @property
    def all(self) -> tuple[ir.Value | None, ir.Value, ir.Value | None]:
        """The parts in their order."""
        return self.before, self.tokens, self.behind


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
    if node.op_type == "Concat" and _axis(node) == axis:
        before, inner, behind = _joined(node, axis)
        first, last = lead(inner, axis)
        return first + _count(before, axis), last + _count(behind, axis)
    if node.op_type == "Pad":
        (first, last), pads = lead(_given(node), axis), _pads(node)
        return first + pads[axis], last + pads[axis + len(shape)]
    for given, place in zip(node.inputs, _places(node, axis), strict=True):
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


@dataclass
class KeyParts:
    """Takes values apart along an axis of keys, of which `lead` are of no token.

    Those of tokens are as many as `time` says.
    """

    emit: Emitter
    lead: tuple[int, int]
    time: str
    _known: dict[tuple[ir.Value, int], AlongKeys] = field(default_factory=dict)

    def of(self, value: ir.Value, axis: int) -> AlongKeys:
        """The parts of `value`, which has all keys along `axis`.

        Raises:
            UnfitError: if it cannot be taken apart.
        """
        if (value, axis) not in self._known:
            self._known[value, axis] = self._of(value, axis)
        return self._known[value, axis]

    def _of(self, value: ir.Value, axis: int) -> AlongKeys:
        node, shape = value.producer(), dims(value) or ()
        if surplus(shape[axis]) != sum(self.lead):
            raise UnfitError
        if not sum(self.lead):
            return AlongKeys(None, value, None)
        if node is None or node.domain:
            raise UnfitError
        rule = SPECIAL.get(node.op_type)
        found = None if rule is None else rule(self, node, axis)
        return self._each(node, axis) if found is None else found

    def _parts(self, make: Callable[[int, Dim], ir.Value]) -> AlongKeys:
        """The parts that `make` gives by number and size; none of those without entries."""
        before, behind = (
            make(which, size) if size else None
            for which, size in zip((0, 2), self.lead, strict=True)
        )
        return AlongKeys(before, make(1, self.time), behind)

    def _each(self, node: ir.Node, axis: int) -> AlongKeys:
        """A node that computes entry by entry, for each part."""
        places = _places(node, axis)
        given = [
            None if place is None or value is None else self.of(value, place)
            for value, place in zip(node.inputs, places, strict=True)
        ]

        def make(which: int, size: Dim) -> ir.Value:
            inputs = [
                value if parts is None else parts.all[which]
                for value, parts in zip(node.inputs, given, strict=True)
            ]
            shape = _shape_of(node, inputs, places, axis, size)
            if node.op_type == "Expand":
                inputs[1] = self._resized(node, axis, self.emit.constant([1]))
            if node.op_type == "Reshape":
                inputs[1] = self._reshaped(node, axis, inputs[0], places[0] or 0)
            made = [(node.outputs[0].dtype, shape)]
            return self.emit.node(node.op_type, inputs, made, attributes_of(node))[0]

        return self._parts(make)

    def _told(self, node: ir.Node, at: int) -> ir.Value:
        """What `node` is told last as its size along the axis `at`, int64 [1], and no more."""
        whole, dim = node.inputs[-1], (dims(node.outputs[0]) or ())[at]
        told, joined = integers(whole), producer(whole, "Concat")
        if isinstance(dim, int) or told is not None:
            return self.emit.constant([dim if told is None else told[at]])
        before = 0
        for part in joined.inputs if joined else ():
            (count,) = dims(part) or ("?",)
            if not isinstance(count, int):
                break
            if at < before + count:
                whole, at = part, at - before
                break
            before += count
        assert whole is not None
        return whole if dims(whole) == (1,) else self._cut(whole, 0, at, at + 1, 1)

    def _resized(self, node: ir.Node, axis: int, size: ir.Value) -> ir.Value:
        """The sizes that `node` is told, with `size` along `axis`."""
        rank = len(dims(node.outputs[0]) or ())
        sizes = [size if at == axis else self._told(node, at) for at in range(rank)]
        return size if rank == 1 else self.emit("Concat", sizes, INT64, [rank], axis=0)

    def _reshaped(self, node: ir.Node, axis: int, given: ir.Value | None, place: int) -> ir.Value:
        """What is told to a Reshape whose input, for one part, is `given`."""
        rank, emit = len(dims(node.outputs[0]) or ()), self.emit
        others = [integers(self._told(node, at)) for at in range(rank) if at != axis]
        size = emit.constant([-1])
        if [-1] in others:
            size = emit("Shape", [given], INT64, [1], start=place, end=place + 1)
        return self._resized(node, axis, size)

    def _cut(self, value: ir.Value, axis: int, start: int, end: int, size: Dim) -> ir.Value:
        """The `size` entries of `value` from `start` to `end` along `axis`."""
        ends = [self.emit.constant([n]) for n in (start, end, axis)]
        shape = _with(value, axis, size)
        return self.emit("Slice", [value, *ends], value.dtype, shape)

    def joined(self, values: Sequence[ir.Value | None], axis: int) -> ir.Value | None:
        """Pieces one after the other along `axis`."""
        given = [value for value in values if value is not None]
        if len(given) < 2:
            return given[0] if given else None
        others = [value for value in given if (dims(value) or ())[axis] != self.time]
        count = _count(others, axis)
        tokens = len(others) < len(given)
        shape = _with(given[0], axis, f"{self.time} + {count}" if tokens else count)
        if any(_with(value, axis, shape[axis]) != shape for value in given):
            raise UnfitError
        return self.emit("Concat", given, given[0].dtype, shape, axis=axis)

    def concat(self, node: ir.Node, axis: int) -> AlongKeys | None:
        """Where keys of tokens and of none were joined."""
        if _axis(node) != axis:
            return None
        before, inner, behind = _joined(node, axis)
        found = self._inner(inner, axis, (_count(before, axis), _count(behind, axis)))
        return AlongKeys(
            self.joined([*before, found.before], axis),
            found.tokens,
            self.joined([found.behind, *behind], axis),
        )

    def _inner(self, value: ir.Value, axis: int, joined: tuple[int, int]) -> AlongKeys:
        """The parts of `value`, to which as many more were `joined` before and behind."""
        left = self.lead[0] - joined[0], self.lead[1] - joined[1]
        if min(*joined, *left) < 0:
            raise UnfitError
        return replace(self, lead=left, _known={}).of(value, axis)

    def pad(self, node: ir.Node, axis: int) -> AlongKeys | None:
        """A number before and behind."""
        old, pads, fill = node.outputs[0], _pads(node), input_of(node, 2)
        number = np.zeros(1) if fill is None else constant(fill)
        here = pads[axis], pads[axis + len(pads) // 2]
        if number is None or sum(map(abs, pads)) != sum(here):
            raise UnfitError
        found = self._inner(_given(node), axis, here)
        before, behind = (self._filled(old, axis, size, number) if size else None for size in here)
        return AlongKeys(
            self.joined([before, found.before], axis),
            found.tokens,
            self.joined([found.behind, behind], axis),
        )

    def _filled(self, old: ir.Value, axis: int, size: Dim, number: npt.ArrayLike) -> ir.Value:
        """`size` times a number along `axis`, the same along axes of `old` of unknown size."""
        shape = [dim if isinstance(dim, int) else 1 for dim in _with(old, axis, size)]
        dtype = old.dtype or ir.DataType.FLOAT
        return self.emit.constant(np.full(shape, np.reshape(number, ())), dtype.numpy())

    def softmax(self, node: ir.Node, axis: int) -> AlongKeys | None:
        """A softmax over the keys, over those of no token last."""
        old, given = node.outputs[0], node.inputs[0]
        if attribute(node, "axis", -1) % len(dims(old) or ()) != axis:
            return None
        assert given is not None
        parts = self.of(given, axis)
        turned = self.joined([parts.tokens, parts.before, parts.behind], axis)
        assert turned is not None
        y = self.emit(node.op_type, [turned], old.dtype, dims(turned), axis=axis)
        first, last = self.lead
        ends = ((-first - last, -last or LAST), (0, -first - last), (-last, LAST))
        return self._parts(lambda which, size: self._cut(y, axis, *ends[which], size))

    def expand(self, node: ir.Node, axis: int) -> AlongKeys | None:
        """What is repeated along the keys, or for all pairs, is so for each part."""
        old = node.outputs[0]
        if node.op_type == "Expand":
            given = dims(node.inputs[0]) or ()
            own = axis - len(dims(old) or ()) + len(given)
            if own >= 0 and given[own] != 1:
                return None

        def make(_: int, size: Dim) -> ir.Value:
            here, extra = self._told(node, axis), self.emit.constant([sum(self.lead)])
            if isinstance(size, int):
                here = self.emit.constant([size])
            elif integers(here) is None:
                here = self.emit("Sub", [here, extra], INT64, [1])
            inputs = [*node.inputs[:-1], self._resized(node, axis, here)]
            made = [(old.dtype, _with(old, axis, size))]
            return self.emit.node(node.op_type, inputs, made, attributes_of(node))[0]

        return self._parts(make)

    def counted(self, node: ir.Node, axis: int) -> AlongKeys | None:
        """Places that are counted: those of tokens start later."""
        del axis
        start, step = (contents(v) if v is not None else None for v in node.inputs[::2])
        (first, last), dtype = self.lead, node.outputs[0].dtype
        if start is None or step is None or last or dtype is None:
            raise UnfitError
        before = self.emit.constant(start + step * np.arange(first), dtype.numpy())
        begin = self.emit.constant(start + step * first, dtype.numpy())
        tokens = self.emit("Range", [begin, *node.inputs[1:]], dtype, [self.time])
        return AlongKeys(before, tokens, None)

    def triangle(self, node: ir.Node, axis: int) -> AlongKeys | None:
        """A triangle of queries and keys: of those of no token all, or none.

        Entry (i, c) is kept where c - i is k or more, or k or less; i may be any token.
        """
        old, given, k = node.outputs[0], node.inputs[0], input_of(node, 1)
        diagonal = np.zeros(1) if k is None else contents(k)
        if axis != len(dims(old) or ()) - 1 or diagonal is None or given is None:
            raise UnfitError
        number, upper = int(diagonal.item()), bool(attribute(node, "upper", 1))
        (first, last), parts = self.lead, self.of(given, axis)
        least = first + 1  # of c - i behind; before, first - 1 is the most
        if (first and first - 1 >= number + (not upper)) or (last and least <= number - upper):
            raise UnfitError
        shape = dims(parts.tokens)
        rest = [parts.tokens, self.emit.constant(number - first)]
        tokens = self.emit("Trilu", rest, old.dtype, shape, upper=int(upper))
        none = [self._filled(old, axis, size, 0) if size else None for size in self.lead]
        if upper:
            return AlongKeys(none[0], tokens, parts.behind)
        return AlongKeys(parts.before, tokens, none[1])

    def rows(self, node: ir.Node, axis: int) -> AlongKeys | None:
        """The first rows of a table; or pieces along other axes."""
        table, old = node.inputs[0], node.outputs[0]
        count, (starts, axes, steps) = (
            (dims(table) or ())[axis],
            (integers(input_of(node, place)) for place in (1, 3, 4)),
        )
        if axes is None or steps not in (None, [1] * len(axes)) or table is None:
            raise UnfitError
        picked = [each % len(dims(old) or ()) for each in axes]
        if axis not in picked:
            return None
        if not isinstance(count, int) or starts != [0] or self.lead[1]:
            raise UnfitError
        first, extra = self.lead[0], self.emit.constant(list(self.lead[:1]))
        end = self.emit("Sub", [node.inputs[2], extra], INT64, [1])
        later = self._cut(table, axis, first, count, count - first)
        inputs = [later, *node.inputs[1:2], end, *node.inputs[3:]]
        tokens = self.emit("Slice", inputs, old.dtype, _with(old, axis, self.time))
        return AlongKeys(self._cut(table, axis, 0, first, first), tokens, None)


SPECIAL: dict[str, Callable[[KeyParts, ir.Node, int], AlongKeys | None]] = {
    "Concat": KeyParts.concat,
    "ConstantOfShape": KeyParts.expand,
    "Expand": KeyParts.expand,
    "Pad": KeyParts.pad,
    "Range": KeyParts.counted,
    "Slice": KeyParts.rows,
    "Softmax": KeyParts.softmax,
    "Trilu": KeyParts.triangle,
}


def _axis(node: ir.Node) -> int:
    return int(attribute(node, "axis") % len(dims(node.outputs[0]) or ()))


def _given(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None:
        raise UnfitError
    return value


def _with(value: ir.Value, axis: int, size: Dim) -> list[Dim]:
    """The shape of `value` with `size` along `axis`."""
    return [size if at == axis else dim for at, dim in enumerate(dims(value) or ())]


def _shape_of(
    node: ir.Node,
    inputs: Sequence[ir.Value | None],
    places: Sequence[int | None],
    axis: int,
    size: Dim,
) -> list[Dim]:
    """The shape of a part of what `node` gives; what was filled has one entry along other axes."""
    given = [(value, dims(value) or ()) for value in inputs if value is not None]
    if node.op_type in ELEMENTWISE:
        met = _met([shape for _, shape in given])
        if met is None:
            raise UnfitError
        return met
    if node.op_type == "MatMul":
        left, right = (shape for _, shape in given)
        front = _met([left[:-2], right[:-2]])
        if front is None:
            raise UnfitError
        return [*front, left[-2], right[-1]]
    for value, old, place in zip(inputs, node.inputs, places, strict=True):
        if place is None or old is None or list(dims(value) or ()) == _with(old, place, size):
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
    return _with(node.outputs[0], axis, size)


def _count(values: Sequence[ir.Value | None], axis: int) -> int:
    """How many entries `values` have along `axis` together."""
    sizes = [
        size
        for value in values
        if isinstance(size := (dims(value) or ("?",) * (axis + 1))[axis], int)
    ]
    if len(sizes) < len(values):
        raise UnfitError
    return sum(sizes)


def _joined(
    node: ir.Node, axis: int
) -> tuple[Sequence[ir.Value | None], ir.Value, Sequence[ir.Value | None]]:
    """What a Concat puts before the part that has tokens, that part, and what it puts behind."""
    timed = [at for at, one in enumerate(node.inputs) if TIME in str((dims(one) or ())[axis])]
    inner = node.inputs[timed[0]] if len(timed) == 1 else None
    if inner is None:
        raise UnfitError
    return node.inputs[: timed[0]], inner, node.inputs[timed[0] + 1 :]


def _pads(node: ir.Node) -> list[int]:
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


def _places(node: ir.Node, axis: int) -> list[int | None]:
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


def _met(shapes: list[tuple[Dim, ...]]) -> list[Dim] | None:
    """The shape of values that meet entry by entry; None where they do not."""
    rank = max(map(len, shapes))
    found: list[Dim] = []
    for column in zip(*[(1,) * (rank - len(shape)) + shape for shape in shapes], strict=True):
        wide = {dim for dim in column if dim != 1}
        if len(wide) > 1:
            return None
        found.append(wide.pop() if wide else 1)
    return found
