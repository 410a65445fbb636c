"""A state that outer products are added to, and that vectors read, is linear attention.

    S <- g S + k v^T                        linear, gated
    S <- g S - b k (k^T g S) + b k v^T      delta, gated_delta
    S <- g S + b (a^T S) + k v^T            any a, b and k: `DPLRDeltaRule`
    o  = S^T q                              after the update

Recognised from the terms of one iteration (`analysis.multilinear`): which factors have the axis of
keys, which that of values, and that the key which is read is the one that is written.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from intaglio.passes.analysis.multilinear import (
    Factor,
    Monomial,
    MultilinearReader,
    NotMultilinearError,
)
from intaglio.passes.graph import Dim, dims
from intaglio.state import BATCH

FLOAT = ir.DataType.FLOAT
ROWS, HEAD, KEY, VALUE, READ = "bhkvc"  # what an axis of a factor is
Part = tuple[ir.Value, tuple[str | None, ...]]


@dataclass(frozen=True)
class Product:
    """A number times parts, values of the body with the role of each of their axes."""

    number: float
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Update:
    """What one iteration does to the state; None where it leaves that out.

    `reads` and `writes` are a and b of a transition of low rank that is no delta rule.
    """

    shape: tuple[Dim, ...]  # of the state
    roles: tuple[str, ...]  # of its axes
    gate: Product | None
    beta: Product | None
    key: Product
    value: Product
    reads: Product | None = None
    writes: Product | None = None

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
    if not fits or 1 in shape[-2:] or state.dtype != FLOAT:
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
    betas = list((rest - wanted).elements())
    wide = any({KEY, VALUE, READ} & {*own} for _, own in betas)
    if wanted - rest or wide or Counter(betas) - Counter(values):
        return _low_rank(
            Update(
                shape,
                roles,
                decay,
                None,
                Product(1.0, tuple(keys)),
                Product(outer.number, tuple(values)),
            ),
            past,
        )
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


def _low_rank(written: Update, past: Product) -> Update | None:
    """`written`, and what is read of the state and added along other keys."""
    if any(VALUE in own or {KEY, READ} <= {*own} for _, own in past.parts):
        return None
    reads = tuple(_moved(part, READ, KEY) for part in past.parts if READ in part[1])
    writes = tuple(part for part in past.parts if READ not in part[1])
    return replace(written, reads=Product(1.0, reads), writes=Product(past.number, writes))


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
