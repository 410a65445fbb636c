"""Sums over earlier tokens with weights that decay -> LinearAttention, whose state is constant.

    sum_{j <= i} (q_i . k_j) exp(G_i - G_j) v_j   =   S_i^T q_i,  S_i = exp(g_i) S_{i-1} + k_i v_i^T

with G the sum of g over tokens so far: the quadratic form of linear attention, of retention (Sun et
al. 2023, arXiv:2307.08621, equation 5), and the dual form of Mamba-2 (Dao and Gu 2024,
arXiv:2405.21060, section 3).  The sum of the weights themselves, which normalises them, is the same
with v = 1.  `_decayed_weights` says of which form weights have to be, and proves it; what is of
another form keeps its keys and values in a cache.
"""

from collections.abc import Iterator, Sequence
from math import prod

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.errors import PassError
from intaglio.passes.analysis.bounds import LONGEST
from intaglio.passes.analysis.intervals import interval
from intaglio.passes.analysis.mask import context_limit, is_nothing_later
from intaglio.passes.analysis.pair_reader import PairReader
from intaglio.passes.analysis.pairs import Axes, PairTerm
from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import (
    Dim,
    Emitter,
    attribute,
    describe,
    dims,
    input_of,
    integers,
    replace_uses,
)
from intaglio.state import BATCH, TIME

from ._decayed_weights import Coefficients, Decomposition, OtherFormError, Placed, Weights
from ._divided_gates import Factor, gates_taken_out
from ._segment_sums import expand_segment_sums

INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT
FLAT = 3  # axes without heads
LARGEST = 20.0  # of an exponent that is taken apart from the rest: e^20 is far from overflowing
PAIRS = 2  # axes of time


class RecogniseLinearAttention(Exact):
    """Write sums over earlier tokens with weights that decay as linear attention."""

    for_tokens = True

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite every group of sums that share scores, where all of them are of this form."""
        notes = [describe(node) for node in expand_segment_sums(model.graph)]
        for scores in [node for node in model.graph if _is_scores(node)]:
            ends = _ends(scores)
            if not ends:
                continue
            try:
                reader = PairReader(model.graph)
                found = [(end, _taken_apart(reader, end)) for end in ends]
                made = [(end, _Emitted(end, weights).result) for end, weights in found]
            except (OtherFormError, PassError):
                continue
            for end, result in made:
                replace_uses(end.outputs[0], result)
                notes.append(describe(end))
        common.RemoveUnusedNodesPass()(model)  # what was emitted and not taken included
        return PassResult(changed=bool(notes), notes=notes)


def _is_scores(node: ir.Node) -> bool:
    """Whether a node multiplies queries and keys of all pairs of tokens."""
    return node.op_type == "MatMul" and not node.domain and _of_pairs(node.outputs[0])


def _of_pairs(value: ir.Value) -> bool:
    return (dims(value) or ()).count(TIME) == PAIRS


def _ends(scores: ir.Node) -> list[ir.Node]:
    """The nodes that sum what becomes of `scores` over the keys; none if some does otherwise."""
    pending, ends, seen = [scores.outputs[0]], dict[ir.Node, None](), set[ir.Value]()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.is_graph_output():
            return []
        for node, place in value.uses():
            if all(_of_pairs(result) for result in node.outputs):
                pending += node.outputs
            elif (node.op_type == "MatMul" and place == 0) or _sums_over_keys(node):
                ends[node] = None
            else:
                return []
    return list(ends)


def _sums_over_keys(node: ir.Node) -> bool:
    shape, axes = dims(node.inputs[0]) or (), integers(input_of(node, 1))
    last = axes is not None and [axis % len(shape) for axis in axes] == [len(shape) - 1]
    return node.op_type == "ReduceSum" and not node.domain and last


def _taken_apart(reader: PairReader, end: ir.Node) -> Weights:
    """The weights that `end` sums with.

    Raises:
        OtherFormError: they are of another form.
        PassError: they do not act on each pair alone.
    """
    value = end.inputs[0]
    rank = len(dims(value) or ())
    if value is None or value.dtype != FLOAT or end.domain:
        raise OtherFormError
    term: PairTerm = reader.read(value, Axes(rank - 2, rank - 1))
    tokens = context_limit(term) or LONGEST
    if not is_nothing_later(term, tokens):
        raise OtherFormError
    return Decomposition(term, tokens).weights


class _Emitted:
    """The operator in the place of one sum; `result` is what the sum gave."""

    def __init__(self, end: ir.Node, weights: Weights) -> None:
        """Emit it.

        Raises:
            OtherFormError: an operand has other axes, or a decay is not shown to be one.
        """
        shape = dims(end.inputs[0]) or ()
        self._emit, self._rank = Emitter(end), weights.rank
        self._lead = shape[:-2]
        if weights.scores is None or len(shape) != weights.rank or self._lead[:1] != (BATCH,):
            raise OtherFormError
        if not all(isinstance(dim, int) for dim in self._lead[1:]):
            raise OtherFormError
        self._heads = prod(int(dim) for dim in self._lead[1:])
        query, key = (
            self._with_heads(one, weights.shared) for one in self._ungated(*weights.scores)
        )
        for side, factor in self._factors(weights):
            if side == "query":
                query = self._times(query, factor)
            else:
                key = self._times(key, factor)
        self._query = self._packed(query)
        key = self._packed(self._turned(key))
        summed = end.op_type == "ReduceSum"
        value = self._everywhere(self._number(1.0), 1) if summed else end.inputs[1]
        decay = self._decay(weights)
        inputs = [self._query, key, self._packed(value)]
        sizes = [int((dims(each) or ())[-1]) // self._heads for each in inputs[1:]]
        width = sizes[-1]
        y, _ = self._emit.node(
            "LinearAttention",
            inputs if decay is None else [*inputs, None, decay],
            [
                (FLOAT, (BATCH, TIME, self._heads * width)),
                (FLOAT, (BATCH, self._heads, *sizes)),
            ],
            {
                "update_rule": "linear" if decay is None else "gated",
                "q_num_heads": self._heads,
                "kv_num_heads": self._heads,
                "scale": 1.0,
            },
        )
        y = self._framed(y, width)
        for factor, divided in weights.rows:
            y = self._times(y, self._inverse(factor) if divided else factor)
        if summed and not attribute(end, "keepdims", 1):
            last = self._emit.constant([-1])
            y = self._emit("Squeeze", [y, last], y.dtype, (dims(y) or ())[:-1])
        self.result = y

    def _factors(self, weights: Weights) -> Iterator[tuple[str, ir.Value]]:
        """What queries and keys are multiplied by: exponentials, and factors of the keys."""
        for placed, sign, by in weights.exponents:
            side = "key" if placed.places[-1] is not None else "query"
            exponent = self._scaled(self._laid(placed), sign, by)
            if not interval(exponent)[1] <= LARGEST:
                raise OtherFormError
            yield side, self._emit("Exp", [exponent], exponent.dtype, dims(exponent))
        for value, divided in weights.columns:
            yield "key", self._inverse(value) if divided else value

    def _ungated(self, query: ir.Value, key: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Queries and keys without the gates that are divided out of the latter."""
        self._gates: list[ir.Value] = []
        found = gates_taken_out(query, key, self._emit)
        if found is None:
            return query, key
        gates = [self._scaled(self._laid(placed), number, ()) for placed, number in found.gates]
        if not all(interval(gate)[1] <= 0.0 for gate in gates):
            return query, key
        self._gates = gates
        return self._multiplied(found.query), self._turned(self._multiplied(found.key))

    def _multiplied(self, factors: Sequence[Factor]) -> ir.Value:
        product: ir.Value | None = None
        for placed, divided in factors:
            value = self._laid(placed)
            value = self._inverse(value) if divided else value
            product = value if product is None else self._times(product, value)
        assert product is not None
        return product

    def _with_heads(self, value: ir.Value, shared: Sequence[int]) -> ir.Value:
        """What heads share, with an axis of one entry for them."""
        if not shared:
            return value
        left = iter(dims(value) or ())
        shape = [1 if axis in shared else next(left) for axis in range(self._rank)]
        return self._emit("Unsqueeze", [value, self._emit.constant(shared)], value.dtype, shape)

    def _inverse(self, value: ir.Value) -> ir.Value:
        return self._emit("Reciprocal", [value], value.dtype, dims(value))

    def _times(self, value: ir.Value, factor: ir.Value) -> ir.Value:
        return self._emit("Mul", [value, factor], value.dtype, _met(value, factor))

    def _scaled(self, value: ir.Value, sign: float, by: Coefficients) -> ir.Value:
        """`value` times numbers that hold for all tokens."""
        for placed in by:
            factor = self._laid(placed)
            if placed.log and interval(placed.value)[0] < 0.0:
                raise OtherFormError
            if placed.log:
                factor = self._emit("Log", [factor], factor.dtype, dims(factor))
            value = self._times(value, self._inverse(factor) if placed.inverse else factor)
        if sign == 1.0:
            return value
        assert value.dtype is not None
        return self._times(value, self._emit.constant(sign, value.dtype.numpy()))

    def _laid(self, placed: Placed) -> ir.Value:
        """A value with all axes of the frame, of one entry where it has none."""
        value, shape = placed.value, dims(placed.value) or ()
        order = [axis for axis in placed.places if axis is not None]
        ones = [axis for axis in range(len(shape)) if axis not in order]
        if any(shape[axis] != 1 for axis in ones):
            raise OtherFormError
        if value.dtype != FLOAT:
            value = self._emit("Cast", [value], FLOAT, shape, to=FLOAT)
        if ones:
            value = self._emit(
                "Squeeze",
                [value, self._emit.constant(ones)],
                value.dtype,
                [shape[axis] for axis in range(len(shape)) if axis in order],
            )
            kept = sorted(order)
            order = [kept.index(axis) for axis in order]
            shape = dims(value) or ()
        if order != sorted(order):
            turned = [shape[axis] for axis in order]
            value = self._emit("Transpose", [value], value.dtype, turned, perm=order)
            shape = tuple(turned)
        missing = [axis for axis, place in enumerate(placed.places) if place is None]
        if not missing:
            return value
        left = iter(shape)
        wide = [1 if place is None else next(left) for place in placed.places]
        return self._emit("Unsqueeze", [value, self._emit.constant(missing)], value.dtype, wide)

    def _turned(self, key: ir.Value) -> ir.Value:
        """Keys that scores take turned, as they are."""
        shape = dims(key) or ()
        rank = len(shape)
        perm = [*range(rank - 2), rank - 1, rank - 2]
        return self._emit("Transpose", [key], key.dtype, [shape[a] for a in perm], perm=perm)

    def _packed(self, value: ir.Value | None) -> ir.Value:
        """[batch, heads.., time, size] as [batch, time, heads * size]."""
        shape = dims(value) or ()
        if value is None or len(shape) != self._rank or shape[0] != BATCH or shape[-2] != TIME:
            raise OtherFormError
        size = shape[-1]
        if not isinstance(size, int):
            raise OtherFormError
        wide = (*self._lead, TIME, size)
        if shape != wide:
            target = self._emit.constant([1, *(int(d) for d in self._lead[1:]), 1, 1])
            value = self._emit("Expand", [value, target], value.dtype, wide)
        if self._rank == FLAT:
            return value
        perm = [0, self._rank - 2, *range(1, self._rank - 2), self._rank - 1]
        value = self._emit("Transpose", [value], value.dtype, [wide[a] for a in perm], perm=perm)
        return self._shaped(value, (BATCH, TIME, self._heads * size))

    def _framed(self, value: ir.Value, size: int) -> ir.Value:
        """[batch, time, heads * size] as [batch, heads.., time, size]."""
        if self._rank == FLAT:
            return value
        shape = (BATCH, TIME, *self._lead[1:], size)
        value = self._shaped(value, shape)
        perm = [0, *range(2, self._rank - 1), 1, self._rank - 1]
        return self._emit("Transpose", [value], value.dtype, [shape[a] for a in perm], perm=perm)

    def _shaped(self, value: ir.Value, shape: tuple[Dim, ...]) -> ir.Value:
        target = self._emit.constant([0, 0, *(int(dim) for dim in shape[2:])])
        return self._emit("Reshape", [value, target], value.dtype, shape)

    def _number(self, number: float) -> ir.Value:
        return self._emit.constant([[number]], FLOAT.numpy())

    def _everywhere(self, value: ir.Value, size: int) -> ir.Value:
        """`value` for every row, head and token."""
        rows, tokens = (
            self._emit("Shape", [self._query], INT64, [1], start=at, end=at + 1) for at in (0, 1)
        )
        heads = self._emit.constant([int(dim) for dim in self._lead[1:]])
        parts = [rows, heads, tokens, self._emit.constant([size])]
        target = self._emit("Concat", parts, INT64, [self._rank], axis=0)
        return self._emit("Expand", [value, target], value.dtype, (*self._lead, TIME, size))

    def _decay(self, weights: Weights) -> ir.Value | None:
        """The logarithm of what each token leaves of the state, [batch, time, heads (* size)]."""
        parts = [self._with_heads(gate, weights.shared) for gate in self._gates]
        for (placed, by), sign in weights.sums.items():
            summand = self._number(1.0) if placed is None else self._laid(placed)
            parts.append(self._scaled(summand, sign, by))
        if not parts:
            return None
        total = parts[0]
        for part in parts[1:]:
            total = self._emit("Add", [total, part], part.dtype, _met(total, part))
        if not interval(total)[1] <= 0.0:
            raise OtherFormError
        size = max(int((dims(part) or (1,))[-1]) for part in parts)
        return self._packed(self._everywhere(total, size))


def _met(first: ir.Value, second: ir.Value) -> list[Dim]:
    """The shape of two values that meet entry by entry."""
    shapes = [dims(first) or (), dims(second) or ()]
    rank = max(map(len, shapes))
    one, other = ([*[1] * (rank - len(shape)), *shape] for shape in shapes)
    return [b if a == 1 else a for a, b in zip(one, other, strict=True)]
