"""Giving matrices fewer channels, in place: weights, shapes, heads, and the angles of each head.

What a weight has become of, as its source has it, is told by a placement: which rows and columns
of the source's its own are.  The others count as zeros there, which computes the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.passes.analysis.pairs_of_matrices import FeedForwardPair, HeadProjection, HeadsOut
from intaglio.passes.analysis.projections import Projection
from intaglio.passes.analysis.rotations import Rotation
from intaglio.passes.graph import Dim, Emitter, constant, dims, set_dims

Array = npt.NDArray[Any]
Places = Sequence[int] | None


@dataclass(kw_only=True)
class Ledger:
    """What became of weights: `placed`, by name, and of the caches of attention, by path.

    Of a cache the entries of each head that are kept, in their order.
    """

    placed: dict[str, dict[str, Any]] = field(default_factory=dict)
    caches: dict[str, dict[str, list[list[int]]]] = field(default_factory=dict)

    def place(
        self, name: str, shape: Sequence[int], places: Sequence[Places], sizes: Sequence[int]
    ) -> None:
        """Say which places of a weight of `shape` its entries have, `sizes` along each axis.

        None: the first ones.  One that was narrowed before has places of places.
        """
        before = self.placed.get(name)
        if before is not None:
            earlier = zip(before["places"], places, sizes, strict=True)
            places = [_within(old, new, size) for old, new, size in earlier]
            shape = before["shape"]
        self.placed[name] = {
            "shape": [int(n) for n in shape],
            "places": [None if each is None else [int(n) for n in each] for each in places],
        }

    def cache(self, path: str, port: str, kept: Array) -> None:
        """Say which entries of each head a cache keeps, [heads, count]."""
        self.caches.setdefault(path, {})[port] = [[int(n) for n in row] for row in kept]


def _within(old: Places, new: Places, size: int) -> Places:
    """Where `size` entries were that are now at `new` of the places `old`."""
    if old is None or new is None:
        return new if old is None else old[:size]
    return [old[at] for at in new]


def weight_of(projection: Projection) -> Array:
    """The weight [N, K] in float64."""
    array = constant(projection.weight)
    assert array is not None
    return (array if projection.by_output else array.T).astype(np.float64)


def vector_of(value: ir.Value | None) -> Array | None:
    """A bias in float64, None where there is none."""
    array = constant(value)
    return None if array is None else array.astype(np.float64)


def put(value: ir.Value, array: Array) -> None:
    """Give an initializer other contents, of any shape."""
    found = constant(value)
    assert found is not None
    new = np.ascontiguousarray(array, found.dtype)
    value.const_value = ir.tensor(new, name=value.name)
    set_dims(value, new.shape)


def put_weight(
    projection: Projection,
    weight: Array,
    ledger: Ledger,
    *,
    rows: Places = None,
    columns: Places = None,
) -> None:
    """Give a projection the weight [N, K]; `rows`, `columns`: which of the source's they are."""
    shape = [projection.outputs, projection.inputs]
    places = [rows, columns]
    if not projection.by_output:
        weight, shape, places = weight.T, shape[::-1], places[::-1]
    put(projection.weight, weight)
    turned = projection.node.inputs[1]
    if turned is not None and turned is not projection.weight:
        set_dims(turned, weight.shape[::-1])
    narrow(projection.node.outputs[0], projection.outputs)
    ledger.place(projection.weight.name or "", shape, places, weight.shape)


def put_vector(value: ir.Value, array: Array, ledger: Ledger, places: Places = None) -> None:
    """Give a vector other contents."""
    (size,) = dims(value) or (len(array),)
    put(value, array)
    ledger.place(value.name or "", [int(size)], [places], array.shape)


def narrow(value: ir.Value, size: int) -> None:
    """Say that the last axis of `value` has `size` entries."""
    set_dims(value, [*(dims(value) or ("?",))[:-1], size])


def narrow_feed_forward(layer: FeedForwardPair, kept: Array, down: Array, ledger: Ledger) -> None:
    """Keep the channels `kept` of a feed-forward, with `down` [N, kept] as its last weight."""
    for up in layer.ups:
        put_weight(up, weight_of(up)[kept], ledger)
    for vector in layer.vectors:
        found = vector_of(vector)
        assert found is not None
        put_vector(vector, found[kept], ledger)
    put_weight(layer.down, down, ledger)
    for value in layer.values:
        narrow(value, len(kept))
    for node in layer.reshapes:
        _reshape_to(node, len(kept))


def _reshape_to(node: ir.Node, size: int) -> None:
    """Let a Reshape give its last axis another size."""
    emit = Emitter(node)
    shape = node.inputs[1]
    count = len(dims(node.outputs[0]) or ())
    ends = [emit.constant([n]) for n in (0, count - 1)]
    first = emit("Slice", [shape, *ends], ir.DataType.INT64, [count - 1])
    whole = emit("Concat", [first, emit.constant([size])], ir.DataType.INT64, [count], axis=0)
    node.replace_input_with(1, whole)


def narrow_scores(
    attention: ir.Node, index: int, heads: HeadProjection, kept: Array, ledger: Ledger
) -> None:
    """Keep channels of queries or keys, `kept` [heads, r]: of pairs first halves, then second ones.

    Where positions turn them, pairs of all heads are turned before heads are cut apart, each by
    the angle that it had.
    """
    count = kept.shape[1]
    places = np.arange(heads.heads)[:, None] * heads.size + kept
    if heads.rotation is None:
        order = places.reshape(-1)
    else:
        order = np.concatenate([p.reshape(-1) for p in np.split(places, 2, axis=1)])
    put_weight(heads.projection, weight_of(heads.projection)[order], ledger, rows=order.tolist())
    bias = vector_of(heads.bias)
    if bias is not None and heads.bias is not None:
        put_vector(heads.bias, bias[order], ledger, order.tolist())
    for value in heads.values:
        narrow(value, len(order))
    emit = Emitter(attention)
    new = (
        _cut(emit, heads.flat, heads.heads, count)
        if heads.rotation is None
        else _turned(emit, heads, heads.rotation, kept[:, : count // 2])
    )
    batch, time, _, _ = dims(new) or ()
    new = emit("Transpose", [new], new.dtype, [batch, heads.heads, time, count], perm=[0, 2, 1, 3])
    attention.replace_input_with(index, new)


def _cut(emit: Emitter, flat: ir.Value, heads: int, size: int) -> ir.Value:
    batch, time, _ = dims(flat) or ()
    shape = emit.constant([0, 0, heads, size])
    return emit("Reshape", [flat, shape], flat.dtype, [batch, time, heads, size])


def _turned(emit: Emitter, heads: HeadProjection, rotation: Rotation, pairs: Array) -> ir.Value:
    """[batch, time, heads, 2 pairs]: a cos - b sin, and b cos + a sin."""
    flat, count = heads.flat, pairs.size
    batch, time, _ = dims(flat) or ()
    part: list[Dim] = [batch, time, count]
    sizes = emit.constant([count, count])
    a, b = emit.node("Split", [flat, sizes], [(flat.dtype, part), (flat.dtype, part)], {"axis": -1})
    cos, sin = (_angles(emit, table, pairs) for table in (rotation.cos, rotation.sin))

    def times(x: ir.Value, table: ir.Value) -> ir.Value:
        return emit("Mul", [x, table], flat.dtype, part)

    first = emit("Sub", [times(a, cos), times(b, sin)], flat.dtype, part)
    second = emit("Add", [times(b, cos), times(a, sin)], flat.dtype, part)
    each = pairs.shape[1]
    halves = [_cut(emit, half, heads.heads, each) for half in (first, second)]
    shape: list[Dim] = [batch, time, heads.heads, 2 * each]
    return emit("Concat", halves, flat.dtype, shape, axis=-1)


def _angles(emit: Emitter, table: ir.Value, pairs: Array) -> ir.Value:
    """The table's columns of each pair of each head, [..., time, heads * pairs]."""
    shape = dims(table) or ()
    index = emit.constant(pairs.reshape(-1))
    found = emit("Gather", [table, index], table.dtype, [*shape[:-1], pairs.size], axis=-1)
    if len(shape) < 4:
        return found
    kept = [shape[0], shape[2], pairs.size]
    return emit("Squeeze", [found, emit.constant([1])], table.dtype, kept)


def narrow_values(
    attention: ir.Node,
    heads: HeadProjection,
    out: HeadsOut,
    change: tuple[Array, Array],
    ledger: Ledger,
) -> None:
    """Give values another basis: P [heads, size, k] of `change`, and its last weight [N, heads k].

    A head's values v become v P, its bias too.
    """
    basis, last = change
    count = basis.shape[2]
    weight = weight_of(heads.projection).reshape(heads.heads, heads.size, -1)
    made = np.einsum("hsk,hsd->hkd", basis, weight).reshape(heads.heads * count, -1)
    first = (np.arange(heads.heads)[:, None] * heads.size + np.arange(count)).reshape(-1)
    put_weight(heads.projection, made, ledger, rows=first.tolist())
    bias = vector_of(heads.bias)
    if bias is not None and heads.bias is not None:
        turned = np.einsum("hsk,hs->hk", basis, bias.reshape(heads.heads, heads.size))
        put_vector(heads.bias, turned.reshape(-1), ledger, first.tolist())
    for value in heads.values:
        narrow(value, heads.heads * count)
    emit = Emitter(attention)
    cut = _cut(emit, heads.flat, heads.heads, count)
    batch, time, _, _ = dims(cut) or ()
    new = emit("Transpose", [cut], cut.dtype, [batch, heads.heads, time, count], perm=[0, 2, 1, 3])
    attention.replace_input_with(2, new)
    result = attention.outputs[0]
    narrow(result, count)
    emit = Emitter(out.projection.node)
    shape = [batch, time, out.heads, count]
    turned_back = emit("Transpose", [result], result.dtype, shape, perm=[0, 2, 1, 3])
    merged = emit.constant([0, 0, out.heads * count])
    flat = emit("Reshape", [turned_back, merged], result.dtype, [batch, time, out.heads * count])
    out.projection.node.replace_input_with(0, flat)
    places = (np.arange(out.heads)[:, None] * out.size + np.arange(count)).reshape(-1)
    put_weight(out.projection, last, ledger, columns=places.tolist())
