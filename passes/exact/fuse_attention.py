"""softmax(scale q k^T + mask) v, written out -> Attention(q, k, v, mask), for 3 and 4 axes.

Soft caps, c tanh(scale q k^T / c) before the mask, are part of it (Gemma Team 2024,
arXiv:2408.00118, section 2).  Scores that are filled with a number have it added instead: with
-inf that is the same; -10,000 or less weighs nothing beside any score (Vaswani et al. 2017,
arXiv:1706.03762, section 3.2.1), wherever the mask leaves each query a key.  What the mask allows
is not asked here; statefulize does, and then gives the attention its cache.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import (
    Emitter,
    Shape,
    attribute,
    constant,
    describe,
    dims,
    producer,
    replace_uses,
)

INT64 = ir.DataType.INT64
LOW = -1e4  # what models fill masked scores with, or less


@dataclass
class _Scores:
    """What lies between a product of queries and keys and the softmax of it."""

    product: ir.Node
    scale: float = 1.0
    softcap: float = 0.0
    masks: list["_Mask"] = field(default_factory=list)


@dataclass
class _Mask:
    """What is added to the scores; or where they stay, or not if negated, others being `fill`."""

    value: ir.Value
    fill: float | None = None
    negated: bool = False


class FuseAttention(Exact):
    """Write softmax attention as one node, whose keys and values can then be cached."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Fuse every product with a softmax of masked, scaled products."""
        notes = []
        for node in list(model.graph):
            if node.op_type != "MatMul" or node.domain:
                continue
            found = _scores(_weights(node.inputs[0]))
            if found is None or not _fuse(node, found):
                continue
            notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)


def _weights(value: ir.Value | None) -> ir.Value | None:
    """What the softmax that `value` is was taken of; a guard against NaN may stand behind it."""
    guard = producer(value, "Where")
    if guard is not None:
        tested = producer(guard.inputs[0], "IsNaN")
        zero = constant(guard.inputs[1])
        if tested is None or tested.inputs[0] is not guard.inputs[2] or zero is None or zero.any():
            return None
        value = guard.inputs[2]
    softmax = producer(_uncast(value), "Softmax")
    if softmax is None or attribute(softmax, "axis", -1) not in (-1, _rank(softmax.inputs[0]) - 1):
        return None
    return softmax.inputs[0]


def _scores(value: ir.Value | None) -> _Scores | None:
    """Follow `value` back through masks and scales to the product of queries and keys."""
    value = _uncast(value)
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return None
    if node.op_type == "MatMul":
        return _Scores(node)
    if node.op_type == "Tanh":
        return _capped(node)
    if node.op_type in ("Mul", "Div"):
        return _scaled(node)
    if node.op_type == "Add":
        return _added(node)
    return _filled(node) if node.op_type == "Where" else None


def _scaled(node: ir.Node) -> _Scores | None:
    for x, factor in ((0, 1), (1, 0)) if node.op_type == "Mul" else ((0, 1),):
        number = _number(node.inputs[factor])
        found = _scores(node.inputs[x]) if number is not None and number > 0 else None
        if found is not None and number is not None:
            number = number if node.op_type == "Mul" else 1 / number
            if found.masks:  # the mask would be scaled as well
                return None
            if found.softcap:  # c tanh(s) is c tanh((c s) / c)
                if producer(_uncast(node.inputs[x]), "Tanh") is None:
                    return None
                found.softcap = number
            found.scale *= number
            return found
    return None


def _capped(node: ir.Node) -> _Scores | None:
    found = _scores(node.inputs[0])
    if found is None or found.masks or found.softcap:
        return None
    found.softcap = 1.0
    return found


def _added(node: ir.Node) -> _Scores | None:
    for x, mask in ((0, 1), (1, 0)):
        found, added = _scores(node.inputs[x]), node.inputs[mask]
        if found is not None and added is not None and _rank(added) <= _rank(node.outputs[0]):
            found.masks.append(_Mask(added))
            return found
    return None


def _filled(node: ir.Node) -> _Scores | None:
    condition, *branches = node.inputs
    for x, fill in ((0, 1), (1, 0)):
        number = _number(branches[fill])
        if number is None or number > LOW or condition is None:
            continue
        found = _scores(branches[x])
        if found is not None:
            found.masks.append(_Mask(condition, number, x == 1))
            return found
    return None


def _fuse(node: ir.Node, found: _Scores) -> bool:
    """Replace `node`, the product with the values, where the shapes are those of attention."""
    query, turned = found.product.inputs
    value, old = node.inputs[1], node.outputs[0]
    ranks = {_rank(v) for v in (query, turned, value)}
    if len(ranks) > 1 or not ranks <= {3, 4} or query is None or turned is None or value is None:
        return False
    query, left = _without_scale(query)
    turned, right = _without_scale(turned)
    scale = found.scale * left * right
    if old.dtype == ir.DataType.DOUBLE and not _is_single(scale, found.softcap):
        return False
    emit = Emitter(node)
    inputs = [query, _turned_back(turned, emit), value]
    scores = dims(found.product.outputs[0]) or ()
    alone = ranks == {3}
    if alone:  # one head, which has no axis
        inputs = [_with_head(v, emit) for v in inputs]
    shape = dims(old) or ()
    y = emit(
        "Attention",
        [*inputs, _mask(found.masks, scores, inputs, emit)] if found.masks else inputs,
        old.dtype,
        (shape[0], 1, *shape[1:]) if alone else shape,
        scale=scale,
        **({"softcap": found.softcap} if found.softcap else {}),
    )
    if alone:
        y = emit("Squeeze", [y, emit.constant([1])], old.dtype, shape)
    replace_uses(old, y)
    return True


def _is_single(*numbers: float) -> bool:
    """Whether attributes, which have 32 bits, hold the numbers exactly."""
    return all(float(np.float32(number)) == number for number in numbers)


def _without_scale(value: ir.Value) -> tuple[ir.Value, float]:
    """`value` before it was multiplied with a number, and the number."""
    node = producer(value, "Mul", "Div")
    if node is None:
        return value, 1.0
    for x, factor in ((0, 1), (1, 0)) if node.op_type == "Mul" else ((0, 1),):
        number, inner = _number(node.inputs[factor]), node.inputs[x]
        if number is not None and number > 0 and inner is not None:
            return inner, number if node.op_type == "Mul" else 1 / number
    return value, 1.0


def _turned_back(value: ir.Value, emit: Emitter) -> ir.Value:
    """[.., size, time] -> [.., time, size], without a Transpose where one undoes another."""
    rank = _rank(value)
    swap = [*range(rank - 2), rank - 1, rank - 2]
    node = producer(value, "Transpose")
    source, shape = value, dims(value) or ()
    result = [shape[axis] for axis in swap]
    if node is not None and node.inputs[0] is not None:
        inner = list(attribute(node, "perm") or reversed(range(rank)))
        source, swap = node.inputs[0], [inner[axis] for axis in swap]
        if swap == list(range(rank)):
            return source
    return emit("Transpose", [source], value.dtype, result, perm=swap)


def _with_head(value: ir.Value, emit: Emitter) -> ir.Value:
    batch, *rest = dims(value) or ()
    return emit("Unsqueeze", [value, emit.constant([1])], value.dtype, [batch, 1, *rest])


def _mask(masks: list[_Mask], scores: Shape, inputs: list[ir.Value], emit: Emitter) -> ir.Value:
    """One mask for `scores` [.., T, S] that does what `masks` do in turn."""
    found: ir.Value | None = None
    dtype = inputs[0].dtype
    if all(mask.fill == float("-inf") for mask in masks):
        for mask in masks:
            allows = _allows(mask, emit)
            found = allows if found is None else _joined("And", [found, allows], emit)
    else:
        for mask in masks:
            found = _in_turn(mask, found, dtype, emit)
    assert found is not None
    shape = dims(found) or ()
    if len(shape) < 2 or shape[-2:] != tuple(scores[-2:]):
        sizes = [emit("Shape", [x], INT64, [1], start=2, end=3) for x in inputs[:2]]
        target = emit("Concat", sizes, INT64, [2], axis=0)
        whole = [*shape[:-2], *scores[-2:]]
        found = emit("Expand", [found, target], found.dtype, whole)
    alone = len(scores) == 3 and len(dims(found) or ()) == 3
    return _with_head(found, emit) if alone else found


def _in_turn(
    mask: _Mask, before: ir.Value | None, dtype: ir.DataType | None, emit: Emitter
) -> ir.Value:
    if mask.fill is None:
        return mask.value if before is None else _joined("Add", [before, mask.value], emit)
    kind = dtype.numpy() if dtype is not None else float
    before = emit.constant(0, kind) if before is None else before
    return _joined("Where", [_allows(mask, emit), before, emit.constant(mask.fill, kind)], emit)


def _allows(mask: _Mask, emit: Emitter) -> ir.Value:
    value = mask.value
    return emit("Not", [value], value.dtype, dims(value)) if mask.negated else value


def _joined(op: str, values: list[ir.Value], emit: Emitter) -> ir.Value:
    """An elementwise node of `values`, of the shape that these have together."""
    shapes = [dims(value) or () for value in values]
    rank = max(map(len, shapes))
    columns = zip(*[(1,) * (rank - len(shape)) + shape for shape in shapes], strict=True)
    shape = [next((dim for dim in column if dim != 1), 1) for column in columns]
    return emit(op, values, values[-1].dtype, shape)


def _uncast(value: ir.Value | None) -> ir.Value | None:
    """`value` before casts that change nothing."""
    while (cast := producer(value, "Cast", "Identity")) and value is not None:
        inner = cast.inputs[0]
        if inner is None or inner.dtype != value.dtype:
            break
        value = inner
    return value


def _number(value: ir.Value | None) -> float | None:
    array = constant(value)
    return float(array.item()) if array is not None and array.size == 1 else None


def _rank(value: ir.Value | None) -> int:
    return len(dims(value) or ())
