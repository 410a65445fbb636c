"""Values along the keys, taken apart: entries of no token before, those of tokens, and behind.

What is computed entry by entry is computed for each part, back to where they were joined: by a
Concat, a Pad, a fill, as places that are counted, as rows of a table, in a triangle of a mask.  A
softmax over the keys is taken with those of no token last, of which it does not ask the order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.passes.analysis.bounds import contents
from intaglio.passes.analysis.pairs import surplus
from intaglio.passes.graph import (
    END,
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

from ._key_places import (
    UnfitError,
    count_along,
    first_of,
    joined_parts,
    joins_along,
    pads_of,
    places_of,
    shape_of_part,
    with_size,
)

INT64 = ir.DataType.INT64


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
        places = places_of(node, axis)
        given = [
            None if place is None or value is None else self.of(value, place)
            for value, place in zip(node.inputs, places, strict=True)
        ]

        def make(which: int, size: Dim) -> ir.Value:
            inputs = [
                value if parts is None else parts.all[which]
                for value, parts in zip(node.inputs, given, strict=True)
            ]
            shape = shape_of_part(node, inputs, places, axis, size)
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
        shape = with_size(value, axis, size)
        return self.emit("Slice", [value, *ends], value.dtype, shape)

    def joined(self, values: Sequence[ir.Value | None], axis: int) -> ir.Value | None:
        """Pieces one after the other along `axis`."""
        given = [value for value in values if value is not None]
        if len(given) < 2:
            return given[0] if given else None
        others = [value for value in given if (dims(value) or ())[axis] != self.time]
        count = count_along(others, axis)
        tokens = len(others) < len(given)
        shape = with_size(given[0], axis, f"{self.time} + {count}" if tokens else count)
        if any(with_size(value, axis, shape[axis]) != shape for value in given):
            raise UnfitError
        return self.emit("Concat", given, given[0].dtype, shape, axis=axis)

    def concat(self, node: ir.Node, axis: int) -> AlongKeys | None:
        """Where keys of tokens and of none were joined."""
        if joins_along(node) != axis:
            return None
        before, inner, behind = joined_parts(node, axis)
        found = self._inner(inner, axis, (count_along(before, axis), count_along(behind, axis)))
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
        old, pads, fill = node.outputs[0], pads_of(node), input_of(node, 2)
        number = np.zeros(1) if fill is None else constant(fill)
        here = pads[axis], pads[axis + len(pads) // 2]
        if number is None or sum(map(abs, pads)) != sum(here):
            raise UnfitError
        found = self._inner(first_of(node), axis, here)
        before, behind = (self._filled(old, axis, size, number) if size else None for size in here)
        return AlongKeys(
            self.joined([before, found.before], axis),
            found.tokens,
            self.joined([found.behind, behind], axis),
        )

    def _filled(self, old: ir.Value, axis: int, size: Dim, number: npt.ArrayLike) -> ir.Value:
        """`size` times a number along `axis`, the same along axes of `old` of unknown size."""
        shape = [dim if isinstance(dim, int) else 1 for dim in with_size(old, axis, size)]
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
        ends = ((-first - last, -last or END), (0, -first - last), (-last, END))
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
            made = [(old.dtype, with_size(old, axis, size))]
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
        tokens = self.emit("Slice", inputs, old.dtype, with_size(old, axis, self.time))
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
