"""Weights of pairs of tokens, taken apart into what one recurrence computes.

    P[i, j] = r[i] (q[i] . k[j]) c[j] exp(G[i] - G[j])  for j <= i,  0 for j > i

with G a sum over tokens so far, of gates or of a number for each (a decay that is constant).  What
weights are is read as a term over pairs (`analysis.pairs`): factors that hold for one of the two
tokens, a product of queries and keys, exponentials and powers of what is a difference of sums, and
choices that are decided the same for all pairs of an earlier and a later token
(`analysis.bounding`).  Anything else, and a sum that does not cancel, is `OtherFormError`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from intaglio.passes.analysis.bounding import evaluate
from intaglio.passes.analysis.bounds import LONGEST, behind
from intaglio.passes.analysis.pairs import PairTerm, TermKind
from intaglio.passes.graph import attribute, constant, dims, input_of, integers
from intaglio.state import TIME

Places = tuple[int | None, ...]  # the axis of a value at each axis of a frame, None for none
FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


class OtherFormError(Exception):
    """Weights are of another form."""


@dataclass(frozen=True)
class Placed:
    """`value`, of which each axis stands at an axis of the frame; `log` means its logarithm."""

    value: ir.Value
    places: Places
    log: bool = False
    inverse: bool = False


Coefficients = tuple[Placed, ...]
Sum = tuple[Placed | None, Coefficients]  # over the tokens so far; None counts them


@dataclass
class Weights:
    """What weights are the product of; `rows` and `columns` are values of the frame.

    `exponents` are added up, each in the exponent of what holds for its own token, and `sums` are
    the differences of sums in it, with the factor that each has.
    """

    rank: int
    scores: tuple[ir.Value, ir.Value] | None = None
    shared: tuple[int, ...] = ()  # axes of the frame that scores lack: heads that share them
    rows: list[tuple[ir.Value, bool]] = field(default_factory=list)  # and whether divided by
    columns: list[tuple[ir.Value, bool]] = field(default_factory=list)
    exponents: list[tuple[Placed, float, Coefficients]] = field(default_factory=list)
    sums: dict[Sum, float] = field(default_factory=dict)


class Decomposition:
    """Takes one term of weights apart; `tokens` is the longest context."""

    def __init__(self, term: PairTerm, tokens: int = LONGEST) -> None:
        """Take `term` apart.

        Raises:
            OtherFormError: it is of another form.
        """
        self.weights = Weights(rank=len(term.shape))
        self._tokens = tokens
        self._by_side: dict[str, Counter[Sum]] = {"query": Counter(), "key": Counter()}
        self._factor(term)
        for one in set(self._by_side["query"]) | set(self._by_side["key"]):
            first, second = (self._by_side[side][one] for side in ("query", "key"))
            if first + second != 0:
                raise OtherFormError
            if first:
                self.weights.sums[one] = float(first)

    def _factor(self, term: PairTerm, *, divided: bool = False) -> None:
        """One factor of the weights."""
        found = self.weights
        if not (_both(term)):
            _check_frame(term, found.rank)
            kept = found.columns if term.axes.key is not None else found.rows
            kept.append((term.value, divided))
            return
        if self._is_one(term):
            return
        if divided or term.kind is not TermKind.NODE:
            raise OtherFormError
        node, inputs = term.node, term.inputs
        if node.op_type == "Mul":
            self._factor(_given(inputs[0]))
            self._factor(_given(inputs[1]))
        elif (shared := _shares(node, found.rank)) and _is_product(inputs[0]):
            self._product(_given(inputs[0]), shared)
        elif node.op_type == "Div" and _is_float(term.value):
            self._factor(_given(inputs[0]))
            self._factor(_given(inputs[1]), divided=True)
        elif node.op_type == "Where":
            self._factor(self._chosen(inputs))
        elif node.op_type == "Exp":
            self._exponent(_given(inputs[0]), 1.0, ())
        elif node.op_type == "Pow" and not _given(inputs[0]).axes and _is_float(term.value):
            base = _placed(_given(inputs[0]).value, found.rank, log=True)
            self._exponent(_given(inputs[1]), 1.0, (base,))
        elif (node.op_type == "Trilu" and _keeps_earlier(node)) or _passes(node):
            self._factor(_given(inputs[0]))
        elif node.op_type == "MatMul":
            self._product(term, ())
        else:
            raise OtherFormError

    def _product(self, term: PairTerm, shared: tuple[int, ...]) -> None:
        """Products of queries and keys, with an axis less for each of `shared`."""
        found, rank = self.weights, self.weights.rank - len(shared)
        _check_frame(term, rank)
        query, key = (_given(one) for one in term.inputs)
        if found.scores is not None or len(query.shape) != rank or len(key.shape) != rank:
            raise OtherFormError
        found.scores, found.shared = (query.value, key.value), shared

    def _exponent(self, term: PairTerm, sign: float, by: Coefficients) -> None:
        """One summand of an exponent."""
        rank = self.weights.rank
        if not _both(term):
            _check_frame(term, rank)
            side = "key" if term.axes.key is not None else "query"
            self._one_token(_placed(term.value, rank), sign, by, side)
            return
        if term.kind is not TermKind.NODE:
            raise OtherFormError
        node, inputs = term.node, term.inputs
        if node.op_type in ("Add", "Sub"):
            self._exponent(_given(inputs[0]), sign, by)
            self._exponent(_given(inputs[1]), -sign if node.op_type == "Sub" else sign, by)
        elif node.op_type == "Neg":
            self._exponent(_given(inputs[0]), -sign, by)
        elif node.op_type == "Mul":
            first, second = (_given(one) for one in inputs)
            number, rest = (first, second) if not first.axes else (second, first)
            if number.axes:
                raise OtherFormError
            self._exponent(rest, sign, (*by, _placed(number.value, rank)))
        elif node.op_type == "Div" and not _given(inputs[1]).axes and _is_float(term.value):
            number = _given(inputs[1])
            self._exponent(
                _given(inputs[0]), sign, (*by, _placed(number.value, rank, inverse=True))
            )
        elif node.op_type == "Where":
            self._exponent(self._chosen(inputs), sign, by)
        elif node.op_type in ("Max", "Clip", "Relu"):
            self._exponent(self._above_zero(node, inputs), sign, by)
        elif (node.op_type == "Trilu" and _keeps_earlier(node)) or _passes(node):
            self._exponent(_given(inputs[0]), sign, by)
        else:
            raise OtherFormError

    def _one_token(self, found: Placed, sign: float, by: Coefficients, side: str) -> None:
        """A summand that holds for one of the tokens: a sum so far, or anything."""
        node, value = found.value.producer(), found.value
        moved = moved_from(found)
        if moved is not None:
            self._one_token(moved, sign, by, side)
        elif node is not None and not node.domain and node.op_type in ("Add", "Sub"):
            for place, one in enumerate(node.inputs):
                if one is None:
                    raise OtherFormError
                flip = -1.0 if node.op_type == "Sub" and place else 1.0
                self._one_token(aligned(found, one), flip * sign, by, side)
        elif node is not None and not node.domain and node.op_type == "Neg" and node.inputs[0]:
            self._one_token(Placed(node.inputs[0], found.places), -sign, by, side)
        elif node is not None and sums_so_far(node) and node.inputs[0] is not None:
            self._count(Placed(node.inputs[0], found.places), sign, by, side)
        elif node is not None and _counts(node):
            self._count(None, sign, by, side)
        else:
            if TIME not in (dims(value) or ()) and side == "key":
                raise OtherFormError
            self.weights.exponents.append((found, sign, by))

    def _count(self, summed: Placed | None, sign: float, by: Coefficients, side: str) -> None:
        if summed is not None and side == "key":  # as if it were the query's
            lead, place = summed.places[:-2], summed.places[-1]
            summed = replace(summed, places=(*lead, place, None))
        order = sorted(by, key=lambda one: (id(one.value), one.log, one.inverse))
        self._by_side[side][summed, tuple(order)] += int(sign)

    def _chosen(self, inputs: Sequence[PairTerm | None]) -> PairTerm:
        """What a Where takes for every pair of a token and an earlier one."""
        found = evaluate(_given(inputs[0]), behind(0, self._tokens, self._tokens))
        if found.low.all():
            return _given(inputs[1])
        if not found.high.any():
            return _given(inputs[2])
        raise OtherFormError

    def _above_zero(self, node: ir.Node, inputs: Sequence[PairTerm | None]) -> PairTerm:
        """What is not changed by a bound from below, for every pair with an earlier token."""
        places = range(len(inputs)) if node.op_type == "Max" else (0,)
        terms = [_given(inputs[place]) for place in places]
        numbers = [one for one in terms if not one.axes]
        rest = [one for one in terms if one.axes]
        if node.op_type == "Clip":
            if input_of(node, 2) is not None or input_of(node, 1) is None:
                raise OtherFormError
            numbers = [_given(inputs[1])]
        bounds = [constant(one.value) for one in numbers]
        if len(rest) != 1 or any(array is None or (array > 0).any() for array in bounds):
            raise OtherFormError
        if not (evaluate(rest[0], behind(0, self._tokens, self._tokens)).low >= 0).all():
            raise OtherFormError
        return rest[0]

    def _is_one(self, term: PairTerm) -> bool:
        """Whether `term` is 1 for every pair of a token and an earlier one."""
        if term.kind is not TermKind.NODE:
            return False
        found = evaluate(term, behind(0, self._tokens, self._tokens))
        return found.low.dtype != bool and bool((found.low == 1).all() and (found.high == 1).all())


def _given(term: PairTerm | None) -> PairTerm:
    if term is None:
        raise OtherFormError
    return term


def _both(term: PairTerm) -> bool:
    return term.axes.query is not None and term.axes.key is not None


def _check_frame(term: PairTerm, rank: int) -> None:
    """The last axes are those of the two tokens, as in the weights."""
    size = len(term.shape)
    query, key = term.axes.query, term.axes.key
    if size > rank or query not in (None, size - 2) or key not in (None, size - 1):
        raise OtherFormError


def _placed(value: ir.Value, rank: int, *, log: bool = False, inverse: bool = False) -> Placed:
    """A value that meets those of the frame by broadcasting: its last axes are the frame's."""
    shape = dims(value)
    if shape is None or len(shape) > rank:
        raise OtherFormError
    lead = rank - len(shape)
    places = [None] * lead + [None if dim == 1 else axis for axis, dim in enumerate(shape)]
    return Placed(value, tuple(places), log, inverse)


def aligned(found: Placed, operand: ir.Value) -> Placed:
    """An operand of the node that gives `found`, where its axes stand in the frame."""
    outer, shape = dims(found.value) or (), dims(operand)
    if shape is None:
        raise OtherFormError
    lead = len(outer) - len(shape)
    own = {lead + axis: axis for axis, dim in enumerate(shape) if dim != 1}
    places = tuple(None if place is None else own.get(place) for place in found.places)
    return Placed(operand, places)


def moved_from(found: Placed) -> Placed | None:
    """What a node that moves axes takes, where its axes stand in the frame; None for others."""
    node = found.value.producer()
    if node is None or node.domain or not node.inputs or node.inputs[0] is None:
        return None
    source, shape = node.inputs[0], dims(node.inputs[0])
    outer = dims(found.value)
    if shape is None or outer is None:
        return None
    if node.op_type in ("Identity", "Expand") or (node.op_type == "Cast" and _keeps_numbers(node)):
        return aligned(found, source)
    if node.op_type == "Transpose":
        perm = attribute(node, "perm", list(reversed(range(len(shape)))))
        moved = {axis: perm[axis] for axis in range(len(perm))}
    elif node.op_type in ("Unsqueeze", "Squeeze", "Reshape"):
        old = [axis for axis, dim in enumerate(shape) if dim != 1]
        new = [axis for axis, dim in enumerate(outer) if dim != 1]
        if [shape[axis] for axis in old] != [outer[axis] for axis in new]:
            return None
        moved = dict(zip(new, old, strict=True))
    else:
        return None
    return Placed(source, tuple(None if p is None else moved.get(p) for p in found.places))


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in FLOATS


def _keeps_numbers(node: ir.Node) -> bool:
    """Whether a Cast leaves each number what it is: none is cut to a whole one, or to a flag."""
    source, result = node.inputs[0], node.outputs[0]
    whole = source is not None and source.dtype == ir.DataType.INT64
    return _is_float(result) and (whole or _is_float(source))


def _passes(node: ir.Node) -> bool:
    """Whether entry (i, j) of what `node` gives is that of what it takes, in the same frame."""
    if node.op_type in ("Identity", "Expand"):
        return True
    if node.op_type == "Cast":
        return _keeps_numbers(node)
    axes = integers(input_of(node, 1)) if node.op_type == "Unsqueeze" else None
    return axes is not None and sorted(axes) == list(range(len(axes)))


def _shares(node: ir.Node, rank: int) -> tuple[int, ...]:
    """The axes, neither rows nor tokens, that an Unsqueeze gives what heads share."""
    axes = integers(input_of(node, 1)) if node.op_type == "Unsqueeze" else None
    if axes is None or len(dims(node.outputs[0]) or ()) != rank:
        return ()
    found = tuple(sorted(axis % rank for axis in axes))
    return found if found and found[0] > 0 and found[-1] < rank - 2 else ()


def _is_product(term: PairTerm | None) -> bool:
    return term is not None and term.kind is TermKind.NODE and term.node.op_type == "MatMul"


def _keeps_earlier(node: ir.Node) -> bool:
    """Whether a Trilu leaves every pair with an earlier token as it is."""
    by = integers(input_of(node, 1))
    return not attribute(node, "upper", 1) and (by is None or by[0] >= 0)


def sums_so_far(node: ir.Node) -> bool:
    """Whether a node is the sum over all tokens so far, each token included."""
    other = attribute(node, "exclusive", 0) or attribute(node, "reverse", 0)
    if node.op_type != "CumSum" or node.domain or other:
        return False
    shape, axis = dims(node.inputs[0]) or (), integers(input_of(node, 1))
    return axis is not None and bool(shape) and shape[axis[0] % len(shape)] == TIME


def _counts(node: ir.Node) -> bool:
    """Whether a node counts the tokens: 0, 1, 2, ..."""
    if node.op_type != "Range" or node.domain:
        return False
    start, step = (constant(node.inputs[place]) for place in (0, 2))
    counted = start is not None and step is not None and start == 0 and step == 1
    return bool(counted) and dims(node.outputs[0]) == (TIME,)
