"""A state that outer products are added to, and that vectors read, is linear attention.

    S <- g S + k v^T                        linear, gated
    S <- g S - b k (k^T g S) + b k v^T      delta, gated_delta
    o  = S^T q                              after the update

Recognised from the terms of one iteration (`analysis.multilinear`): which factors have the axis of
keys, which that of values, and that the key which is read is the one that is written.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from intaglio.passes.analysis.multilinear import (
    Factor,
    Monomial,
    MultilinearReader,
    NotMultilinearError,
)
from intaglio.passes.graph import Dim, Emitter, dims
from intaglio.state import BATCH, TIME

from ._all_tokens import AllTokens, Lifted, UnliftedError, turned
from ._log_decay import decays, log_decay

ROWS, HEAD, KEY, VALUE, READ = "bhkvc"  # what an axis of a factor is
Part = tuple[ir.Value, tuple[str | None, ...]]


@dataclass(frozen=True)
class Product:
    """A number times parts, values of the body with the role of each of their axes."""

    number: float
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Update:
    """What one iteration does to the state; None where it leaves that out."""

    shape: tuple[Dim, ...]  # of the state
    roles: tuple[str, ...]  # of its axes
    gate: Product | None
    beta: Product | None
    key: Product
    value: Product

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Heads, size of keys, size of values."""
        named = dict(zip(self.roles, self.shape, strict=True))
        heads, keys, values = (int(named.get(role, 1)) for role in (HEAD, KEY, VALUE))
        return heads, keys, values


LAYOUTS = ("bkv", "bvk", "bhkv", "bhvk", "bhk")
"""What the axes of a state may be; in the last each head has values of size one, as a channel has
that reads a state of its own."""


def update(
    state: ir.Value, following: ir.Value, depends: Collection[ir.Value], layout: str
) -> Update | None:
    """The update from `state` to `following`, None where it is not one of these rules."""
    shape, roles = dims(state) or (), tuple(layout)
    fits = len(shape) == len(roles) and shape[0] == BATCH and BATCH not in shape[1:]
    if not fits or 1 in shape[-2:] or state.dtype != ir.DataType.FLOAT:
        return None
    try:
        terms = MultilinearReader([state], depends).of(following)
    except NotMultilinearError:
        return None
    kept, read, written = [], [], []
    for term in terms:
        own = [factor for factor in term.factors if factor.value is state]
        if len(own) > 1:
            return None
        if not own:
            written.append(_product(term, None, roles))
        elif own[0].labels == term.out:
            kept.append(_product(term, own[0], roles))
        else:
            read.append(_product(term, own[0], roles))
    if len(kept) != 1 or len(read) > 1 or len(written) != 1:
        return None
    gate, outer, past = kept[0], written[0], read[0] if read else None
    if gate is None or outer is None or (read and past is None):
        return None
    return _rule(shape, roles, gate, outer, past)


def _rule(
    shape: tuple[Dim, ...],
    roles: tuple[str, ...],
    gate: Product,
    outer: Product,
    past: Product | None,
) -> Update | None:
    if any({VALUE, READ} & {*own} for _, own in gate.parts) or gate.number <= 0:
        return None
    sides = [_sides(part) for part in outer.parts]
    if None in sides or KEY not in sides:
        return None
    keys = [part for part, side in zip(outer.parts, sides, strict=True) if side == KEY]
    values = [part for part, side in zip(outer.parts, sides, strict=True) if side != KEY]
    decay = gate if gate.parts or gate.number != 1 else None
    if past is None:
        value = Product(outer.number, tuple(values))
        return Update(shape, roles, decay, None, Product(1.0, tuple(keys)), value)
    wanted = Counter(_moved(part, KEY, READ) for part in (*gate.parts, *keys)) + Counter(keys)
    rest = Counter(past.parts)
    if wanted - rest:
        return None
    betas = list((rest - wanted).elements())
    if any({KEY, VALUE, READ} & {*own} for _, own in betas) or Counter(betas) - Counter(values):
        return None
    number = -past.number / gate.number
    left = tuple((Counter(values) - Counter(betas)).elements())
    return Update(
        shape,
        roles,
        decay,
        Product(number, tuple(betas)),
        Product(1.0, tuple(keys)),
        Product(outer.number / number, left),
    )


def _product(term: Monomial, state: Factor | None, roles: Sequence[str]) -> Product | None:
    """The factors beside the state, with roles for labels; None where these are other sums."""
    names = {label: role for label, role in zip(term.out, roles, strict=True) if label is not None}
    if state is not None:
        for label, role in zip(state.labels, roles, strict=True):
            if label in names and names[label] != role:
                return None
            if label is not None and label not in names:
                if role != KEY:
                    return None
                names[label] = READ
    others = [factor for factor in term.factors if factor is not state]
    if any(label not in names for factor in others for label in factor.labels if label is not None):
        return None
    parts = [(f.value, tuple(None if x is None else names[x] for x in f.labels)) for f in others]
    return Product(term.number, tuple(parts))


def _sides(part: Part) -> str | None:
    """Whether a part of an outer product has the axis of keys, that of values, neither (rows)."""
    own = {KEY, VALUE} & {*part[1]}
    return None if len(own) > 1 else next(iter(own), ROWS)


def _moved(part: Part, one: str, other: str) -> Part:
    return part[0], tuple(other if role == one else role for role in part[1])


def query(
    update_: Update, following: ir.Value, value: ir.Value, depends: Collection[ir.Value]
) -> Product | None:
    """What `value` multiplies the new state by, where it sums that over the keys and no more."""
    try:
        terms = MultilinearReader([following], depends).of(value)
    except NotMultilinearError:
        return None
    own = [factor for term in terms for factor in term.factors if factor.value is following]
    if len(terms) != 1 or len(own) != 1:
        return None
    names = dict(zip(own[0].labels, update_.roles, strict=True))
    wanted = [names[x] for x in own[0].labels if x is not None and names[x] != KEY]
    found = [names.get(x) for x in terms[0].out if x is not None]
    # the result has the axes of the state but that of the keys, in their order
    if wanted != found:
        return None
    parts = []
    for factor in terms[0].factors:
        if factor is own[0]:
            continue
        if any(x is not None and names.get(x, VALUE) == VALUE for x in factor.labels):
            return None
        parts.append((factor.value, tuple(x if x is None else names[x] for x in factor.labels)))
    return Product(terms[0].number, tuple(parts))


class EmittedOperator:
    """The operator in the graph: its results by query, and the state after the last token."""

    def __init__(
        self,
        tokens: AllTokens,
        found: Update,
        queries: Sequence[Product],
        start: ir.Value | None,
    ) -> None:
        """Emit it.

        Raises:
            UnliftedError: a part is not computed of each token alone, or the gate is no decay.
        """
        self._tokens, self._emit = tokens, tokens.emit
        heads, keys, values = found.sizes
        self._heads, self._found = heads, found
        rule = "delta" if found.beta else "linear"
        key = self._over(found.key, keys, KEY)
        asked = [self._over(each, keys, KEY, heads_apart=True) for each in queries]
        many = max(1, len(asked))
        if len(asked) > 1:
            joined = self._emit(
                "Concat", asked, key.dtype, (BATCH, TIME, heads, many * keys), axis=3
            )
            packed = self._packed(joined, heads * many * keys)
        else:
            packed = self._packed(asked[0], heads * keys) if asked else key
        decay = None
        if found.gate is not None:
            rule = "gated_delta" if found.beta else "gated"
            decay = self._decay(found.gate, keys)
        beta = None if found.beta is None else self._over(found.beta, 1, KEY)
        value = self._over(found.value, values, VALUE)
        inputs = [packed, key, value, self._start(start), decay, beta]
        while inputs[-1] is None:
            inputs.pop()
        output, self.present = self._emit.node(
            "LinearAttention",
            inputs,
            [
                (key.dtype, (BATCH, TIME, heads * many * values)),
                (key.dtype, (BATCH, heads, keys, values)),
            ],
            {
                "update_rule": rule,
                "q_num_heads": heads * many,
                "kv_num_heads": heads,
                "scale": 1.0,
            },
        )
        self.results = self._apart(output, many, values)

    def _apart(self, output: ir.Value, many: int, values: int) -> list[ir.Value]:
        if many == 1:
            return [output]
        shape = (BATCH, TIME, self._heads, many, values)
        apart = self._tokens.reshaped(output, shape)
        picked = []
        for index in range(many):
            one = self._emit(
                "Gather",
                [apart, self._emit.constant(index)],
                output.dtype,
                (BATCH, TIME, self._heads, values),
                axis=3,
            )
            picked.append(one)
        return picked

    def _start(self, start: ir.Value | None) -> ir.Value | None:
        if start is None:
            return None
        start = turned(self._emit, start, self._order())
        return self._laid(start, (BATCH, *self._found.sizes))

    def final(self) -> ir.Value:
        """The state after the last token in the shape that the loop gives it."""
        order, shape = self._order(), self._found.shape
        state = self._laid(self.present, tuple(shape[axis] for axis in order))
        return turned(self._emit, state, [order.index(axis) for axis in range(len(order))])

    def _order(self) -> list[int]:
        """The axes of the state in the order that the operator has them."""
        roles = self._found.roles
        return [roles.index(role) for role in (ROWS, HEAD, KEY, VALUE) if role in roles]

    def _laid(self, value: ir.Value, shape: tuple[Dim, ...]) -> ir.Value:
        if dims(value) == shape:
            return value
        target = self._emit.constant([0, *(int(dim) for dim in shape[1:])])
        return self._emit("Reshape", [value, target], value.dtype, shape)

    def _packed(self, value: ir.Value, size: int) -> ir.Value:
        return self._tokens.reshaped(value, (BATCH, TIME, size))

    def _decay(self, gate: Product, keys: int) -> ir.Value:
        per_key = any(KEY in roles for _, roles in gate.parts)
        value = self._multiplied(gate, keys if per_key else 1, KEY)
        shown = all(decays(part) for part, _ in gate.parts) and gate.number <= 1
        log = log_decay(self._emit, value, shown=shown)
        if log is None:
            raise UnliftedError
        size = keys if per_key else 1
        return self._packed(self._full(log, size), self._heads * size)

    def _over(
        self, product: Product, size: int, role: str, *, heads_apart: bool = False
    ) -> ir.Value:
        """A product as the operator takes it: [batch, time, heads * size]."""
        full = self._full(self._multiplied(product, size, role), size)
        return full if heads_apart else self._packed(full, self._heads * size)

    def _full(self, value: ir.Value, size: int) -> ir.Value:
        """`value` with an entry for each row, token, head and place."""
        wanted = (BATCH, TIME, self._heads, size)
        if dims(value) == wanted:
            return value
        if (dims(value) or ())[:2] == (BATCH, TIME):
            target = self._emit.constant([1, 1, self._heads, size])
        else:
            target = self._sized(size)
        return self._emit("Expand", [value, target], value.dtype, wanted)

    def _sized(self, size: int) -> ir.Value:
        """The sizes of the batch and of the time, from a value that has both, and the others."""
        like = next(
            (
                found.value
                for found in self._tokens.known.values()
                if (dims(found.value) or ())[:2] == (BATCH, TIME)
            ),
            None,
        )
        if like is None:
            raise UnliftedError
        int64 = ir.DataType.INT64
        sizes = self._emit("Shape", [like], int64, [2], start=0, end=2)
        rest = self._emit.constant([self._heads, size])
        return self._emit("Concat", [sizes, rest], int64, [4], axis=0)

    def _multiplied(self, product: Product, size: int, role: str) -> ir.Value:
        """The parts beside each other as [batch, time, heads, size], ones where they are not."""
        value: ir.Value | None = None
        for part in product.parts:
            placed = self._placed(part, size, role)
            value = placed if value is None else _times(self._emit, value, placed)
        if value is None:
            return self._emit.constant([[[[product.number]]]], "float32")
        if product.number == 1.0:
            return value
        return _times(self._emit, value, self._emit.constant(product.number, "float32"))

    def _placed(self, part: Part, size: int, role: str) -> ir.Value:
        value, roles = part
        found: Lifted = self._tokens.of(value)
        own = dims(value) or ()
        order = [ROWS, HEAD, role]
        named = [(order.index(r), i) for i, r in enumerate(roles) if r is not None]
        shape = [1, 1, 1, 1]  # type: list[Dim]
        for place, axis in named:
            shape[place + (place > 0)] = own[axis]
        rows = own[:1] == (BATCH,)
        if found.along:
            shape[1] = TIME
        lead = int(found.along)
        axes = [axis for _, axis in sorted(named)]
        others = [axis for axis in range(len(own)) if axis not in axes]
        if rows and ROWS not in roles:
            raise UnliftedError
        perm = [*axes, *others]
        if perm != list(range(len(own))):
            if rows and found.along:
                outer = [0, 1, *(axis + 1 for axis in perm[1:])]
            else:
                outer = [*range(lead), *(axis + lead for axis in perm)]
            moved = turned(self._emit, found.value, outer)
        else:
            moved = found.value
        if dims(moved) == tuple(shape):
            return moved
        del size
        target = [dim if isinstance(dim, int) else 0 for dim in shape]
        if found.along and not rows:
            target[1] = -1
        return self._emit("Reshape", [moved, self._emit.constant(target)], moved.dtype, shape)


def _times(emit: Emitter, left: ir.Value, right: ir.Value) -> ir.Value:
    one, two = dims(left) or (), dims(right) or ()
    rank = max(len(one), len(two))
    pairs = zip((1,) * (rank - len(one)) + one, (1,) * (rank - len(two)) + two, strict=True)
    shape = [b if a == 1 else a for a, b in pairs]
    return emit("Mul", [left, right], left.dtype, shape)
