"""What a value of a loop's body is as a sum of products, whatever operators spell it.

    value[out] = sum over terms of  number * product of factors[their labels],

summed over labels that `out` does not have (Einstein's convention).  Products, transposes,
reductions, matrix products and Einsum are read so; any other operator makes a factor of its own if
it does not depend on the state, and ends the reading if it does.  Two spellings of one update, as
``k.unsqueeze(-1) * u.unsqueeze(-2)`` and ``einsum("bk,bv->bkv", k, u)``, have the same terms.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import count

import onnx_ir as ir

from intaglio.passes.graph import attribute, constant, dims, input_of, integers

from .time_facts import normal

Label = int
Labels = tuple[Label | None, ...]
MOST = 16  # terms of a value; a product of many sums is left alone


class NotMultilinearError(Exception):
    """A value depends on the state by more than products and sums."""


@dataclass(frozen=True)
class Factor:
    """A value and the label of each of its axes, None where it has one entry."""

    value: ir.Value
    labels: Labels


@dataclass(frozen=True)
class Monomial:
    """A number times factors; `out` has the label of each axis, None where it is constant there."""

    number: float
    factors: tuple[Factor, ...]
    out: Labels

    def renamed(self, names: dict[Label, Label]) -> "Monomial":
        """The same with other labels."""

        def apply(labels: Labels) -> Labels:
            return tuple(None if x is None else names.get(x, x) for x in labels)

        factors = tuple(Factor(f.value, apply(f.labels)) for f in self.factors)
        return Monomial(self.number, factors, apply(self.out))

    @property
    def labels(self) -> set[Label]:
        """All labels of its factors."""
        return {x for f in self.factors for x in f.labels if x is not None}


class MultilinearReader:
    """Monomials of values; `atoms` are not read further, `depends` are computed from the state."""

    def __init__(self, atoms: Collection[ir.Value], depends: Collection[ir.Value]) -> None:
        self._atoms, self._depends = set(atoms), set(depends)
        self._fresh = count()
        self._found: dict[ir.Value, list[Monomial]] = {}

    def of(self, value: ir.Value | None) -> list[Monomial]:
        """The terms of `value`.

        Raises:
            NotMultilinearError: it depends on the state otherwise.
        """
        if value is None or dims(value) is None:
            raise NotMultilinearError
        if value not in self._found:
            self._found[value] = self._read(value)
            if len(self._found[value]) > MOST:
                raise NotMultilinearError
        return self._found[value]

    def _read(self, value: ir.Value) -> list[Monomial]:
        number = constant(value)
        if number is not None and number.size == 1 and number.dtype.kind == "f":
            return [Monomial(float(number.item()), (), (None,) * number.ndim)]
        node = None if value in self._atoms else value.producer()
        state = value in self._depends
        if node is None or node.domain or (node.op_type in SUMS and not state):
            return self._atom(value)
        rule = RULES.get(node.op_type)
        if rule is not None:
            try:
                return rule(self, node)
            except NotMultilinearError:
                if state:
                    raise
        if state:
            raise NotMultilinearError
        return self._atom(value)

    def _atom(self, value: ir.Value) -> list[Monomial]:
        if value in self._depends and value not in self._atoms:
            raise NotMultilinearError
        labels = tuple(None if dim == 1 else next(self._fresh) for dim in dims(value) or ())
        return [Monomial(1.0, (Factor(value, labels),), labels)]

    def apart(self, term: Monomial) -> Monomial:
        """`term` with labels of its own."""
        return term.renamed({label: next(self._fresh) for label in term.labels})

    def product(
        self, left: Monomial, right: Monomial, pairs: Sequence[tuple[int, int]]
    ) -> Monomial:
        """Both factors, with the labels at `pairs` of their axes made one; `out` is empty."""
        right = self.apart(right)
        names: dict[Label, Label] = {}
        for a, b in pairs:
            one, two = left.out[a], right.out[b]
            if one is None or two is None:
                continue
            if names.get(two, one) != one:
                raise NotMultilinearError  # a diagonal
            names[two] = one
        right = right.renamed(names)
        return Monomial(left.number * right.number, left.factors + right.factors, right.out)


def _align(out: Labels, rank: int) -> Labels:
    return (None,) * (rank - len(out)) + out


def _rank(node: ir.Node) -> int:
    return len(dims(node.outputs[0]) or ())


def _mul(reader: MultilinearReader, node: ir.Node) -> list[Monomial]:
    rank, found = _rank(node), []
    for a in reader.of(node.inputs[0]):
        for b in reader.of(node.inputs[1]):
            left = replace(a, out=_align(a.out, rank))
            right = replace(b, out=_align(b.out, rank))
            made = reader.product(left, right, [(i, i) for i in range(rank)])
            out = tuple(y if x is None else x for x, y in zip(left.out, made.out, strict=True))
            found.append(replace(made, out=out))
    return found


def _add(reader: MultilinearReader, node: ir.Node) -> list[Monomial]:
    rank, sign = _rank(node), -1.0 if node.op_type == "Sub" else 1.0
    left = [replace(t, out=_align(t.out, rank)) for t in reader.of(node.inputs[0])]
    right = [replace(t, out=_align(t.out, rank)) for t in reader.of(node.inputs[1])]
    return left + [replace(t, number=sign * t.number) for t in right]


def _neg(reader: MultilinearReader, node: ir.Node) -> list[Monomial]:
    return [replace(t, number=-t.number) for t in reader.of(node.inputs[0])]


def _div(reader: MultilinearReader, node: ir.Node) -> list[Monomial]:
    by = constant(node.inputs[1])
    if by is None or by.size != 1 or not by.item():
        raise NotMultilinearError
    return [replace(t, number=t.number / float(by.item())) for t in reader.of(node.inputs[0])]


def _same(reader: MultilinearReader, node: ir.Node) -> list[Monomial]:
    if node.op_type == "Cast" and node.outputs[0].dtype != (
        node.inputs[0].dtype if node.inputs[0] is not None else None
    ):
        raise NotMultilinearError
    return reader.of(node.inputs[0])


def _laid_out(reader: MultilinearReader, node: ir.Node) -> list[Monomial]:
    """Unsqueeze, Squeeze and Reshape that only insert or drop axes of size one, and Expand."""
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if before is None or after is None:
        raise NotMultilinearError
    if node.op_type == "Expand":
        rank = len(after)
        return [replace(t, out=_align(t.out, rank)) for t in reader.of(node.inputs[0])]
    kept = [i for i, dim in enumerate(before) if dim != 1]
    if [before[i] for i in kept] != [dim for dim in after if dim != 1]:
        raise NotMultilinearError
    found = []
    for term in reader.of(node.inputs[0]):
        labels = iter([term.out[i] for i in kept])
        found.append(replace(term, out=tuple(None if dim == 1 else next(labels) for dim in after)))
    return found


def _transpose(reader: MultilinearReader, node: ir.Node) -> list[Monomial]:
    perm = attribute(node, "perm") or list(reversed(range(_rank(node))))
    return [replace(t, out=tuple(t.out[i] for i in perm)) for t in reader.of(node.inputs[0])]


def _sum(reader: MultilinearReader, node: ir.Node) -> list[Monomial]:
    shape = dims(node.inputs[0]) or ()
    axes = integers(input_of(node, 1)) or attribute(node, "axes")
    if not axes:
        raise NotMultilinearError
    summed = {normal(axis, len(shape)) for axis in axes}
    keep = attribute(node, "keepdims", 1)
    return [_summed(t, shape, summed, keep=bool(keep)) for t in reader.of(node.inputs[0])]


def _summed(term: Monomial, shape: Sequence[int | str], axes: set[int], *, keep: bool) -> Monomial:
    constants = [shape[axis] for axis in axes if term.out[axis] is None]
    if any(not isinstance(dim, int) for dim in constants):
        raise NotMultilinearError
    number = term.number * math.prod(int(dim) for dim in constants)
    out: list[Label | None] = []
    for axis, label in enumerate(term.out):
        if axis not in axes:
            out.append(label)
        elif keep:
            out.append(None)
    return Monomial(number, term.factors, tuple(out))


def _mat_mul(reader: MultilinearReader, node: ir.Node) -> list[Monomial]:
    shapes = [dims(value) or () for value in node.inputs]
    if min(map(len, shapes)) < 2:
        raise NotMultilinearError
    rank, size = max(map(len, shapes)), shapes[0][-1]
    found = []
    for a in reader.of(node.inputs[0]):
        for b in reader.of(node.inputs[1]):
            left = replace(a, out=_align(a.out, rank))
            right = replace(b, out=_align(b.out, rank))
            inner = rank - 1, rank - 2
            pairs = [*((i, i) for i in range(rank - 2)), inner]
            made = reader.product(left, right, pairs)
            number = made.number
            if left.out[inner[0]] is None and made.out[inner[1]] is None:
                if not isinstance(size, int):
                    raise NotMultilinearError
                number *= size
            batch = [
                y if x is None else x
                for x, y in zip(left.out[: rank - 2], made.out[: rank - 2], strict=True)
            ]
            out = (*batch, left.out[rank - 2], made.out[rank - 1])
            found.append(Monomial(number, made.factors, out))
    return found


def _einsum(reader: MultilinearReader, node: ir.Node) -> list[Monomial]:
    equation = str(attribute(node, "equation")).replace(" ", "")
    takes, _, gives = equation.partition("->")
    sides = takes.split(",")
    if "." in equation or any(len(set(s)) < len(s) for s in (*sides, gives)):
        raise NotMultilinearError
    sizes: dict[str, int | str] = {}
    for side, value in zip(sides, node.inputs, strict=True):
        for letter, dim in zip(side, dims(value) or (), strict=True):
            sizes[letter] = dim if sizes.get(letter, 1) == 1 else sizes[letter]
    found = [({}, Monomial(1.0, (), ()))]  # type: list[tuple[dict[str, Label | None], Monomial]]
    for side, value in zip(sides, node.inputs, strict=True):
        joined = []
        for letters, term in found:
            for other in reader.of(value):
                have = [letter for letter in side if letters.get(letter) is not None]
                left = replace(term, out=tuple(letters[letter] for letter in have))
                pairs = [(i, side.index(letter)) for i, letter in enumerate(have)]
                made = reader.product(left, other, pairs)
                new = dict(letters)
                for letter, label in zip(side, made.out, strict=True):
                    if new.get(letter) is None:
                        new[letter] = label
                joined.append((new, made))
        found = joined
    result = []
    for letters, term in found:
        lost = [sizes[x] for x, label in letters.items() if label is None and x not in gives]
        if any(not isinstance(dim, int) for dim in lost):
            raise NotMultilinearError
        number = term.number * math.prod(int(dim) for dim in lost)
        result.append(Monomial(number, term.factors, tuple(letters[x] for x in gives)))
    return result


SUMS = frozenset({"Add", "Sub"})
RULES: dict[str, Callable[[MultilinearReader, ir.Node], list[Monomial]]] = {
    "Add": _add,
    "Cast": _same,
    "Div": _div,
    "Einsum": _einsum,
    "Expand": _laid_out,
    "Identity": _same,
    "MatMul": _mat_mul,
    "Mul": _mul,
    "Neg": _neg,
    "ReduceSum": _sum,
    "Reshape": _laid_out,
    "Squeeze": _laid_out,
    "Sub": _add,
    "Transpose": _transpose,
    "Unsqueeze": _laid_out,
}
