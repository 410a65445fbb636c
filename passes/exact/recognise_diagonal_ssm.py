"""Linear attention with values of one number, whose keys and decays are products -> `DiagonalSSM`.

    S[d, n] <- e^{dt[d] A[d, n]} S[d, n] + (u[d] B[n]),   y[d] = sum_n C[n] S[d, n]

A selective scan that a loop over tokens spells out (Mamba, Gu and Dao 2023, arXiv:2312.00752) has
what each token keeps and adds as tensors of [batch, time, D, N], so that each channel d is found to
be a head with N keys and one value.  Where these tensors are products of one factor over channels
and one over states, nothing of that size has to be written: `DiagonalSSM` takes the factors.  They
are read from the graph (`analysis.multilinear`); where one depends on token, channel and state at
once, the node stays.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.passes.analysis.multilinear import Factor, MultilinearReader, NotMultilinearError
from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import (
    Dim,
    Emitter,
    Shape,
    attribute,
    describe,
    dims,
    input_of,
    producer,
    replace_uses,
)
from intaglio.passes.own_ops import define
from intaglio.signature import DOMAIN
from intaglio.state import BATCH, TIME

FLOAT = ir.DataType.FLOAT
B, T, D, N = range(4)  # axes of what a token keeps, adds and reads
TOKENS = {B, T}


class RecogniseDiagonalSsm(Exact):
    """Write heads with values of one number as channels of a diagonal state-space model."""

    for_tokens = True

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite every LinearAttention that is one."""
        notes = []
        for node in [n for n in model.graph if n.op_type == "LinearAttention" and not n.domain]:
            found = _read(node)
            if found is not None:
                _EmitSelective(node, found.channels, found.states).replace(found)
                notes.append(describe(node))
        if notes:
            common.RemoveUnusedNodesPass()(model)
            define(model)
        return PassResult(changed=bool(notes), notes=notes)


@dataclass(frozen=True)
class _Factors:
    """A number times factors, the axis of a token's state that each axis of a factor lies along."""

    number: float
    factors: tuple[tuple[ir.Value, tuple[int | None, ...]], ...]

    @property
    def axes(self) -> set[int]:
        return {axis for _, own in self.factors for axis in own if axis is not None}

    def split(self, axes: Collection[int]) -> "tuple[_Factors, _Factors]":
        """The factors that lie along one of `axes`, and the others with the number."""
        along = tuple(factor for factor in self.factors if {*axes} & {*factor[1]})
        others = tuple(factor for factor in self.factors if factor not in along)
        return _Factors(1.0, along), _Factors(self.number, others)

    def times(self, other: "_Factors") -> "_Factors":
        return _Factors(self.number * other.number, self.factors + other.factors)


@dataclass(frozen=True)
class _Selective:
    channels: int
    states: int
    u: _Factors
    a: _Factors
    b: _Factors
    c: _Factors
    delta: _Factors


def _read(node: ir.Node) -> _Selective | None:
    """The system that `node` computes, None where it is none."""
    query, key, value = node.inputs[:3]
    gate, heads, scale = input_of(node, 4), attribute(node, "q_num_heads"), attribute(node, "scale")
    shape = dims(key) or ()
    if attribute(node, "update_rule") != "gated" or heads != attribute(node, "kv_num_heads"):
        return None
    if not scale or gate is None or dims(gate) != shape or dims(query) != shape:
        return None
    if shape[:2] != (BATCH, TIME) or key is None or key.dtype != FLOAT:
        return None
    if dims(value) != (BATCH, TIME, heads) or int(shape[2]) == heads:
        return None
    reader, states = MultilinearReader((), ()), int(shape[2]) // heads
    try:
        read, write, kept = (_product(reader, x, heads, states) for x in (query, key, gate))
        given = _product(reader, value, heads, 1)
    except NotMultilinearError:
        return None
    b, others = write.split({N})
    delta, a = kept.split(TOKENS)
    u, c = given.times(others), read.times(_Factors(float(scale), ()))
    along = [bool(x.axes & TOKENS) for x in (b, c)]
    told = D in read.axes or D in b.axes or N in delta.axes
    if told or along[0] != along[1] or not all(x.axes >= TOKENS for x in (u, delta)):
        return None
    if along[0] and not all(x.axes >= {B, T, N} for x in (b, c)):
        return None
    return _Selective(heads, states, u, a, b, c, delta)


def _product(reader: MultilinearReader, value: ir.Value | None, heads: int, size: int) -> _Factors:
    """`value` [batch, time, heads * size] by axes of [batch, time, heads, size].

    Raises:
        NotMultilinearError: it is no product, or one over sums.
    """
    wide = (BATCH, TIME, heads, size)
    apart = value
    while dims(apart) != wide and (node := producer(apart, "Reshape")) is not None:
        apart = node.inputs[0]
    if dims(apart) != wide and size > 1:
        raise NotMultilinearError
    terms = reader.of(apart if dims(apart) == wide else value)
    if len(terms) != 1:
        raise NotMultilinearError
    axis = {label: place for place, label in enumerate(terms[0].out) if label is not None}
    return _Factors(terms[0].number, tuple((f.value, _placed(f, axis)) for f in terms[0].factors))


def _placed(factor: Factor, axis: dict[int, int]) -> tuple[int | None, ...]:
    if any(label is not None and label not in axis for label in factor.labels):
        raise NotMultilinearError  # summed over
    return tuple(None if label is None else axis[label] for label in factor.labels)


class _EmitSelective(Emitter):
    """Emits a system in the place of `anchor`."""

    def __init__(self, anchor: ir.Node, channels: int, states: int) -> None:
        super().__init__(anchor)
        self._node = anchor
        self._sizes: tuple[Dim, ...] = (BATCH, TIME, channels, states)

    def replace(self, found: _Selective) -> None:
        node, lti = self._node, not found.b.axes & TOKENS
        own, mixing = (D, N), (D, N) if lti else (B, T, N)
        past = input_of(node, 3)
        state: tuple[Dim, ...] = (BATCH, *self._sizes[2:])
        if past is not None:
            past = self("Squeeze", [past, self.constant([3])], FLOAT, state)
        inputs = [
            self._multiplied(found.u, (B, T, D)),
            self._multiplied(found.a, own),
            self._multiplied(found.b, mixing),
            self._multiplied(found.c, mixing),
            self._multiplied(found.delta, (B, T, D)),
            *([] if past is None else [past]),
        ]
        looks: list[tuple[ir.DataType | None, Shape | None]]
        looks = [(FLOAT, self._sizes[:3]), (FLOAT, state)]
        kind = {"discretization": "none", "lti": int(lti)}
        y, last = self.node("DiagonalSSM", inputs, looks, kind, DOMAIN)
        after = self("Unsqueeze", [last, self.constant([3])], FLOAT, (*state, 1))
        for old, new in zip(node.outputs, (y, after), strict=False):
            replace_uses(old, new)
        assert node.graph is not None
        node.graph.remove(node, safe=True)

    def _multiplied(self, product: _Factors, axes: Sequence[int]) -> ir.Value:
        """The factors as one value along `axes`, with an entry for each place."""
        wanted = tuple(self._sizes[axis] for axis in axes)
        value: ir.Value | None = None
        for factor, own in product.factors:
            placed = self._laid(factor, own, axes)
            value = placed if value is None else self._times(value, placed)
        if value is None or product.number != 1.0:
            number = self.constant(product.number, "float32")
            value = number if value is None else self._times(value, number)
        if dims(value) == wanted:
            return value
        sizes = [size if isinstance(size, int) else 1 for size in wanted]
        return self("Expand", [value, self.constant(sizes)], FLOAT, wanted)

    def _laid(self, value: ir.Value, own: Sequence[int | None], axes: Sequence[int]) -> ir.Value:
        """`value` with its axes in the order of `axes`, of size one where it has none."""
        shape = dims(value) or ()
        order = sorted(range(len(own)), key=lambda i: (own[i] is None, own[i] or 0))
        if order != list(range(len(own))):
            moved = [shape[i] for i in order]
            value = self("Transpose", [value], FLOAT, moved, perm=order)
        wanted = [self._sizes[axis] if axis in own else 1 for axis in axes]
        if dims(value) == tuple(wanted):
            return value
        free = [place for place, size in enumerate(wanted) if not isinstance(size, int)]
        target = [size if isinstance(size, int) else 0 for size in wanted]
        if free == [1]:  # of a value that starts with the time
            target[1] = -1
        return self("Reshape", [value, self.constant(target)], FLOAT, wanted)

    def _times(self, left: ir.Value, right: ir.Value) -> ir.Value:
        one, two = dims(left) or (), dims(right) or ()
        one, two = (1,) * (len(two) - len(one)) + one, (1,) * (len(one) - len(two)) + two
        shape: list[Dim] = [b if a == 1 else a for a, b in zip(one, two, strict=True)]
        return self("Mul", [left, right], FLOAT, shape)
