"""Which values are the same for a token as a query and as a key.

A mask that compares what two tokens are, their documents or their blocks, allows each token itself,
whatever the data say: both sides are one value, with its axis of time at two places.
"""

import numpy as np
import onnx_ir as ir

from intaglio.passes.graph import dims
from intaglio.state import TIME

from .bounds import contents
from .time_rules import ELEMENTWISE

MOVERS = frozenset("Expand Identity Reshape Squeeze Transpose Unsqueeze".split())
COMPUTED = ELEMENTWISE | {"Where"}


def same_at_own(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Whether the entries of token t are the same in both values, for every t."""
    known: dict[tuple[ir.Value, ir.Value], bool] = {}

    def same(one: ir.Value | None, other: ir.Value | None) -> bool:
        if one is None or other is None:
            return one is other
        one, other = _before_moves(one), _before_moves(other)
        if (one, other) not in known:
            known[one, other] = one is other or computed(one, other)
        return known[one, other]

    def computed(one: ir.Value, other: ir.Value) -> bool:
        first, second = one.producer(), other.producer()
        if first is None or second is None or _entries(one) is None:
            return _same_number(one, other)
        if first.op_type == second.op_type == "Range" and not first.domain:
            pairs = zip(first.inputs, second.inputs, strict=True)
            return all(a is b or (a and b and _same_number(a, b)) for a, b in pairs)
        return (
            (first.op_type in COMPUTED and not first.domain)
            and (first.op_type, first.domain) == (second.op_type, second.domain)
            and dict(first.attributes) == dict(second.attributes)
            and _entries(one) == _entries(other)
            and len(first.inputs) == len(second.inputs)
            and all(same(a, b) for a, b in zip(first.inputs, second.inputs, strict=True))
        ) or _same_number(one, other)

    return same(left, right)


def _before_moves(value: ir.Value) -> ir.Value:
    """What `value` is with axes of one entry added, taken or moved."""
    while (node := value.producer()) is not None and node.op_type in MOVERS and not node.domain:
        given = node.inputs[0]
        if given is None or _entries(value) is None or _entries(given) != _entries(value):
            return value
        value = given
    return value


def _entries(value: ir.Value) -> tuple[int | str, ...] | None:
    """The axes of more than one entry, in order; None where two of them look alike.

    So an axis is told by its size, wherever it stands, and values are broadcast along the same.
    """
    shape = dims(value)
    kept = tuple(dim for dim in shape or () if dim != 1)
    alike = len(set(kept)) < len(kept) or any(TIME in str(dim) and dim != TIME for dim in kept)
    return None if shape is None or alike else kept


def _same_number(one: ir.Value, other: ir.Value) -> bool:
    a, b = contents(one), contents(other)
    return a is not None and b is not None and a.size == b.size == 1 and bool(np.array_equal(a, b))
