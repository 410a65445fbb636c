"""The operator that a state of outer products becomes, in the graph; see `_outer_products`."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from intaglio.passes.graph import Dim, Emitter, dims
from intaglio.signature import DOMAIN
from intaglio.state import BATCH, TIME

from ._all_tokens import AllTokens, Lifted, UnliftedError, turned
from ._log_decay import decays, log_decay
from ._outer_products import FLOAT, HEAD, KEY, ROWS, VALUE, Part, Product, Update


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
        self._tokens, self._emit, self._found = tokens, tokens.emit, found
        self._heads, keys, values = found.sizes
        key = self._over(found.key, keys, KEY)
        value = self._over(found.value, values, VALUE)
        asked = [self._over(each, keys, KEY, heads_apart=True) for each in queries]
        many = max(1, len(asked))
        query = self._queries(asked, keys) if asked else key
        emit = self._low_rank if found.reads else self._rule
        output, self.present = emit(query, key, value, self._start(start), many)
        self.results = self._apart(output, many, values)

    def _queries(self, asked: Sequence[ir.Value], keys: int) -> ir.Value:
        """The queries of each head side by side."""
        many, joined = len(asked), asked[0]
        if many > 1:
            shape = (BATCH, TIME, self._heads, many * keys)
            joined = self._emit("Concat", asked, joined.dtype, shape, axis=3)
        return self._packed(joined, self._heads * many * keys)

    def _rule(
        self, query: ir.Value, key: ir.Value, value: ir.Value, start: ir.Value | None, many: int
    ) -> Sequence[ir.Value]:
        found, decay = self._found, None
        rule = "delta" if found.beta else "linear"
        if found.gate is not None:
            rule = "gated_delta" if found.beta else "gated"
            decay = self._decay(found.gate)
        beta = None if found.beta is None else self._over(found.beta, 1, KEY)
        attributes = {
            "update_rule": rule,
            "q_num_heads": self._heads * many,
            "kv_num_heads": self._heads,
            "scale": 1.0,
        }
        self.kind = "LinearAttention"
        return self._node([query, key, value, start, decay, beta], attributes, many)

    def _low_rank(
        self, query: ir.Value, key: ir.Value, value: ir.Value, start: ir.Value | None, many: int
    ) -> Sequence[ir.Value]:
        found, (_, keys, _) = self._found, self._found.sizes
        if many > 1 or found.reads is None or found.writes is None:
            raise UnliftedError
        a, b = (self._over(each, keys, KEY) for each in (found.reads, found.writes))
        decay = None if found.gate is None else self._decay(found.gate, per_key=True)
        self.kind = "DPLRDeltaRule"
        inputs = [query, key, value, a, b, decay, start]
        return self._node(inputs, {"num_heads": self._heads}, many, DOMAIN)

    def _node(
        self,
        inputs: list[ir.Value | None],
        attributes: Mapping[str, Any],
        many: int,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """An operator of `self.kind`: its output and the state after the last token."""
        while inputs[-1] is None:
            inputs.pop()
        (heads, _, values), dtype = self._found.sizes, FLOAT
        return self._emit.node(
            self.kind,
            inputs,
            [
                (dtype, (BATCH, TIME, heads * many * values)),
                (dtype, (BATCH, *self._found.sizes)),
            ],
            attributes,
            domain,
        )

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

    def _decay(self, gate: Product, *, per_key: bool = False) -> ir.Value:
        """The logarithm of `gate`, for each key if it differs between them or is asked to."""
        per_key = per_key or any(KEY in roles for _, roles in gate.parts)
        size = self._found.sizes[1] if per_key else 1
        value = self._multiplied(gate, size, KEY)
        shown = all(decays(part) for part, _ in gate.parts) and gate.number <= 1
        log = log_decay(self._emit, value, shown=shown)
        if log is None:
            raise UnliftedError
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
