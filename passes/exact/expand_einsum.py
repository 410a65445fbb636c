"""Einsum -> Transpose and MatMul, where one product of matrices says it, or Mul without a sum.

Written so, attention is recognised as what it is, and a weight is one that can be quantized:
``bqhd,bkhd->bhqk`` are scores, ``btd,de->bte`` is a projection.  What an equation sums over, what
only one side has, and what both have and keep are each one letter then, but for the letters of a
side that meets a plain matrix, which may be any number.  More than two tensors are taken two by
two: ``blhn,bshn,bhls,bshp->blhp``, the dual form of Mamba-2, is scores times a mask, and a product.
A letter that one side alone has and nobody keeps is summed up before; a product with a vector,
``x @ q``, is one with a matrix of one column.
"""

import itertools
import string
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import Emitter, attribute, describe, dims, replace_uses
from intaglio.state import BATCH, TIME

NONE = "1"  # the letter of an axis of one entry, which no side has


@dataclass(frozen=True)
class _Product:
    """Letters of both sides in the order of a product of matrices, and of what it gives.

    What a side has not is of one entry there, and `NONE` is of one entry in all of them.
    """

    left: str
    right: str
    gives: str


class ExpandEinsum(Exact):
    """Write contractions of two tensors as products of matrices."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite every Einsum that one product says."""
        notes = [describe(node) for node in list(model.graph) if _of_a_vector(node)]
        for node in [n for n in model.graph if n.op_type == "Einsum" and not n.domain]:
            spelled, summed = _spell_out(node), _sum_alone(node)
            parts = _two_by_two(node)
            done = [part for part in parts if _beside(part) or _expand(part) or _summed(part)]
            if done or spelled or summed or len(parts) > 1:
                notes.append(describe(node))
            for gone in [*reversed(done), *([node] if len(parts) > 1 else [])]:
                model.graph.remove(gone, safe=True)
        return PassResult(changed=bool(notes), notes=notes)


def _of_a_vector(node: ir.Node) -> bool:
    """Write the product of matrices with a vector as one with a matrix of one column, or row."""
    if node.op_type != "MatMul" or node.domain:
        return False
    shapes = [dims(value) for value in node.inputs]
    left, right = (-1 if shape is None else len(shape) for shape in shapes)
    if min(left, right) != 1 or max(left, right) < 2:
        return False
    emit, old, place = Emitter(node), node.outputs[0], int(right == 1)
    vector = node.inputs[place]
    assert vector is not None
    size = (shapes[place] or ())[0]
    shape = [size, 1] if place else [1, size]
    laid = emit("Unsqueeze", [vector, emit.constant([place])], vector.dtype, shape)
    operands = [node.inputs[0], laid] if place else [laid, node.inputs[1]]
    kept = list(dims(old) or ())
    wide = [*kept, 1] if place else [*kept[:-1], 1, kept[-1]]
    product = emit("MatMul", operands, old.dtype, wide)
    axis = emit.constant([-1 if place else -2])
    replace_uses(old, emit("Squeeze", [product, axis], old.dtype, kept))
    node.graph.remove(node, safe=True)  # type: ignore[union-attr]
    return True


def _spell_out(node: ir.Node) -> bool:
    """Give axes that stand for themselves, ``...kp,kqp->...kq``, and a result that is not told."""
    takes, arrow, gives = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    sides, shapes = takes.split(","), [dims(value) for value in node.inputs]
    if not arrow:
        once = sorted(x for x in set(takes) - {*",."} if takes.count(x) == 1)
        gives = ("..." if "." in takes else "") + "".join(once)
    if "." in takes and None not in shapes and len(sides) == len(shapes):
        free = [x for x in string.ascii_letters if x not in takes + gives]
        beside = [
            len(shape or ()) - len(side.replace("...", ""))
            for side, shape in zip(sides, shapes, strict=True)
            if "..." in side
        ]
        if max(beside) > len(free) or min(beside) < 0:
            return False
        letters = "".join(free[: max(beside)])
        counts = iter(beside)
        sides = [
            side.replace("...", letters[len(letters) - next(counts) :]) if "..." in side else side
            for side in sides
        ]
        if _sizes(sides, list(node.inputs)) is None:  # one of them is stretched
            return False
        gives = gives.replace("...", letters)
    equation = f"{','.join(sides)}->{gives}"
    changed = equation != str(attribute(node, "equation", "")).replace(" ", "")
    node.attributes["equation"] = ir.AttrString("equation", equation)
    return changed


def _sum_alone(node: ir.Node) -> bool:
    """Sum each tensor over what it alone has and the result has not."""
    takes, _, gives = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    sides, values = takes.split(","), list(node.inputs)
    if len(sides) < 2 or "." in takes or _sizes(sides, values) is None:
        return False
    emit, before = Emitter(node), list(sides)
    for place, (side, value) in enumerate(zip(sides, values, strict=True)):
        others = "".join([*sides[:place], *sides[place + 1 :], gives])
        over = [axis for axis, letter in enumerate(side) if letter not in others]
        if not over or value is None:
            continue
        sides[place] = "".join(letter for letter in side if letter in others)
        sizes = dims(value) or ()
        shape = [size for axis, size in enumerate(sizes) if axis not in over]
        given = [value, emit.constant(over)]
        if all(sizes[axis] == 1 for axis in over):
            taken = emit("Squeeze", given, value.dtype, shape)
        else:
            taken = emit("ReduceSum", given, value.dtype, shape, keepdims=0)
        node.replace_input_with(place, taken)
    node.attributes["equation"] = ir.AttrString("equation", f"{','.join(sides)}->{gives}")
    return sides != before


def _two_by_two(node: ir.Node) -> list[ir.Node]:
    """`node` as contractions of two tensors each, the last in its place; itself if it is one."""
    takes, _, gives = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    sides, values = takes.split(","), list(node.inputs)
    known = _sizes(sides, values)
    if len(sides) < 3 or "." in takes or known is None or set("".join(sides)) == set(gives):
        return [node]
    pairs = _plan(sides, gives)
    if pairs is None:
        return [node]
    emit, old, made = Emitter(node), node.outputs[0], []
    for first, second, between in pairs:
        equation = f"{sides[first]},{sides[second]}->{between}"
        shape = [known[letter] for letter in between]
        two = [values[first], values[second]]
        y = emit("Einsum", two, old.dtype, shape, equation=equation)
        made.append(y.producer())
        for place in sorted((first, second), reverse=True):
            del sides[place], values[place]
        sides.insert(0, between)
        values.insert(0, y)
    if values[0] is not None:
        replace_uses(old, values[0])
    return [part for part in made if part is not None]


def _plan(sides: Sequence[str], gives: str) -> list[tuple[int, int, str]] | None:
    """Which two of what is left to contract next, and to what; None where one is too large."""
    sides, plan = list(sides), []
    while len(sides) > 1:
        found = None
        for first, second in itertools.combinations(range(len(sides)), 2):
            a, b = sides[first], sides[second]
            others = [x for place, x in enumerate(sides) if place not in (first, second)]
            wanted = {*gives, *"".join(others)}
            between = "".join(sorted(({*a} | {*b}) & wanted, key=(gives + a + b).index))
            between = between if others else gives
            product = _product(a, b, between)
            sums = product is not None
            if product is not None and others:
                between = product.gives  # as it comes, so that it is not turned
            beside = {*a} | {*b} == {*between} and len(between) == max(len(a), len(b))
            if beside and others:
                between = max(a, b, key=len)
            if sums or (beside and found is None):
                found = (first, second, between)
            if sums:
                break
        if found is None:
            return None
        plan.append(found)
        for place in sorted(found[:2], reverse=True):
            del sides[place]
        sides.insert(0, found[2])
    return plan


def _sizes(sides: Sequence[str], values: Sequence[ir.Value | None]) -> dict[str, int | str] | None:
    """The size of each letter; None where one is not known, or is stretched from 1."""
    sizes: dict[str, int | str] = {}
    for side, value in zip(sides, values, strict=True):
        shape = dims(value)
        if shape is None or len(shape) != len(side) or len(set(side)) < len(side):
            return None
        for letter, size in zip(side, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return None
    return sizes


def _beside(node: ir.Node) -> bool:
    """Write what sums over nothing as products entry by entry, of any number of tensors."""
    takes, _, gives = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    if set(takes.replace(",", "")) != set(gives):
        return False
    emit = Emitter(node)
    total = _entry_by_entry(emit, node, takes, gives)
    if total is None:
        return False
    replace_uses(node.outputs[0], total)
    return True


def _summed(node: ir.Node) -> bool:
    """Write products entry by entry, then a sum, where a tensor has all letters: none is larger.

    ``btd,bsd,btsd->bts`` are scores with a decay of its own for each pair of tokens and channel.
    """
    takes, _, gives = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    full = gives + "".join(dict.fromkeys(x for x in takes if x not in "," + gives))
    sides = takes.split(",")
    if full == gives or len(sides) < 2 or {*full} not in [{*side} for side in sides]:
        return False
    emit = Emitter(node)
    total = _entry_by_entry(emit, node, takes, full)
    if total is None:
        return False
    axes = emit.constant(list(range(len(gives), len(full))))
    shape = (dims(total) or ())[: len(gives)]
    y = emit("ReduceSum", [total, axes], node.outputs[0].dtype, shape, keepdims=0)
    replace_uses(node.outputs[0], y)
    return True


def _entry_by_entry(emit: Emitter, node: ir.Node, takes: str, gives: str) -> ir.Value | None:
    """The product of all inputs with the axes of `gives`; None where a shape is not known."""
    sides = takes.split(",")
    shapes = [dims(value) for value in node.inputs]
    if "." in takes or len(sides) != len(shapes):
        return None
    if any(len(set(side)) < len(side) for side in (*sides, gives)):
        return None
    if any(s is None or len(s) != len(side) for s, side in zip(shapes, sides, strict=True)):
        return None
    laid = []
    for side, shape, value in zip(sides, shapes, node.inputs, strict=True):
        assert value is not None
        assert shape is not None
        own = dict(zip(side, shape, strict=True))
        laid.append(_laid(emit, value, side, gives, own))
    total = laid[0]
    for value in laid[1:]:
        pairs = zip(dims(total) or (), dims(value) or (), strict=True)
        sizes = [b if a == 1 else a for a, b in pairs]
        total = emit("Mul", [total, value], node.outputs[0].dtype, sizes)
    return total


def _laid(
    emit: Emitter, value: ir.Value, side: str, gives: str, own: dict[str, int | str]
) -> ir.Value:
    """`value` with an axis for each letter of `gives`, of size one where it has none."""
    order = sorted(side, key=gives.index)
    if "".join(order) != side:
        perm = [side.index(letter) for letter in order]
        value = emit("Transpose", [value], value.dtype, [own[x] for x in order], perm=perm)
    missing = [axis for axis, letter in enumerate(gives) if letter not in side]
    if missing:
        looks = [own.get(letter, 1) for letter in gives]
        value = emit("Unsqueeze", [value, emit.constant(missing)], value.dtype, looks)
    return value


def _expand(node: ir.Node) -> bool:
    takes, _, gives = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    sides = takes.split(",")
    if len(sides) != 2 or "." in takes or any(len(set(s)) < len(s) for s in (*sides, gives)):
        return False
    shapes = [dims(value) if value is not None else None for value in node.inputs]
    if any(s is None or len(s) != len(side) for s, side in zip(shapes, sides, strict=True)):
        return False
    sizes: dict[str, int | str] = {
        letter: size
        for side, shape in zip(sides, shapes, strict=True)
        for letter, size in zip(side, shape or (), strict=True)
    }
    if any(1 in (shape or ()) for shape in shapes) and _stretches(sides, shapes):
        return False
    product = _product(sides[0], sides[1], gives)
    if _of_pairs(sides, gives, sizes) and (product is None or _rows_inside(sides, sizes)):
        product = _product_of_pairs(sides[0], sides[1], gives, sizes)
    if product is None:
        return False
    emit, old = Emitter(node), node.outputs[0]
    left = _turned(emit, node.inputs[0], sides[0], product.left, sizes)
    right = _turned(emit, node.inputs[1], sides[1], product.right, sizes)
    shape = [sizes.get(letter, 1) for letter in product.gives]
    y = emit("MatMul", [left, right], old.dtype, shape)
    replace_uses(old, _turned(emit, y, product.gives, gives, sizes) or y)
    return True


def _turned(
    emit: Emitter, value: ir.Value | None, letters: str, wanted: str, sizes: dict[str, int | str]
) -> ir.Value | None:
    """`value`, whose axes are `letters`, with those of `wanted`."""
    if letters == wanted or value is None:
        return value
    if gone := [axis for axis, letter in enumerate(letters) if letter == NONE]:
        letters = letters.replace(NONE, "")
        shape = [sizes[letter] for letter in letters]
        value = emit("Squeeze", [value, emit.constant(gone)], value.dtype, shape)
    order = [letter for letter in wanted if letter in letters]
    if "".join(order) != letters:
        perm = [letters.index(letter) for letter in order]
        shape = [sizes[letter] for letter in order]
        value = emit("Transpose", [value], value.dtype, shape, perm=perm)
    if missing := [axis for axis, letter in enumerate(wanted) if letter not in letters]:
        shape = [sizes[x] if x in letters else 1 for x in wanted]
        value = emit("Unsqueeze", [value, emit.constant(missing)], value.dtype, shape)
    return value


def _of_pairs(sides: Sequence[str], gives: str, sizes: dict[str, int | str]) -> bool:
    """Whether a side, or the result, has an entry for each pair of tokens, or key of no token."""
    return any(sum(TIME in str(sizes[letter]) for letter in part) > 1 for part in (*sides, gives))


def _rows_inside(sides: Sequence[str], sizes: dict[str, int | str]) -> bool:
    """Whether only one side has rows of a batch, and both have other letters that are kept."""
    rows = [BATCH in (sizes[letter] for letter in side) for side in sides]
    return rows[0] is not rows[1]


def _product_of_pairs(a: str, b: str, gives: str, sizes: dict[str, int | str]) -> _Product | None:
    """The product that sums over one letter, with all but two of those it keeps in front."""
    summed = [letter for letter in a if letter in b and letter not in gives]
    if len(summed) != 1 or {*a, *b} != {*gives, *summed}:
        return None
    rows, columns = (
        [x for x in gives if x in one and x not in other and sizes[x] != BATCH]
        for one, other in ((a, b), (b, a))
    )
    row, column = (letters[-1] if letters else NONE for letters in (rows, columns))
    front = "".join(letter for letter in gives if letter not in (row, column))
    left, right = (_without_lead(front, side) for side in (a, b))
    return _Product(left + row + summed[0], right + summed[0] + column, front + row + column)


def _without_lead(front: str, side: str) -> str:
    """`front` from the first letter on that `side` has; what is before it needs no axis."""
    return front[next((at for at, x in enumerate(front) if x in side), len(front)) :]


def _product(a: str, b: str, gives: str) -> _Product | None:
    """The product that sums over what `gives` has not, None where there is none."""
    summed = [letter for letter in a if letter in b and letter not in gives]
    both = [letter for letter in a if letter in b and letter in gives]
    rows = [letter for letter in a if letter not in b]
    columns = [letter for letter in b if letter not in a]
    if len(summed) != 1 or len(columns) != 1 or set(rows) | set(both) | set(columns) != set(gives):
        return None
    if len(rows) != 1 and (both or not rows):
        return None
    # Batch in the order of the result, so that it is turned as little as can be.
    kept = "".join(sorted(both, key=gives.index) if both else rows[:-1])
    (inner,), (column,), row = summed, columns, rows[-1]
    return _Product(
        left=kept + row + inner,
        right=(kept if both else "") + inner + column,
        gives=kept + row + column,
    )


def _stretches(sides: list[str], shapes: list[tuple[int | str, ...] | None]) -> bool:
    """Whether a letter is 1 on one side alone, which a sum over it would stretch."""
    first, second = (
        dict(zip(side, shape or (), strict=True)) for side, shape in zip(sides, shapes, strict=True)
    )
    return any((first[x] == 1) != (second[x] == 1) for x in first.keys() & second.keys())
