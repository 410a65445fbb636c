"""Between which numbers every entry of a value lies, whatever the data.

Intervals of the operators that gates are made of (Moore 1966, Interval Analysis, chapter 3), and
one fact that no interval says: nothing exceeds a maximum that it takes part in.  What is not known
lies anywhere.  Weights are what they are in the graph.
"""

import math
from collections.abc import Callable

import onnx_ir as ir

from intaglio.passes.graph import constant, factors, input_of, producer

Interval = tuple[float, float]
Found = dict[ir.Value | None, Interval]
ANYWHERE: Interval = (-math.inf, math.inf)
DEPTH = 200  # nodes in a row; behind them values lie anywhere

MOVES = frozenset(
    "Cast Expand Flatten Gather Identity Reshape Slice Split Squeeze Tile Transpose Unsqueeze "
    "ReduceMax ReduceMin ReduceMean".split()
)
BETWEEN: dict[str, Interval] = {
    "Abs": (0.0, math.inf),
    "HardSigmoid": (0.0, 1.0),
    "LogSoftmax": (-math.inf, 0.0),
    "ReduceL1": (0.0, math.inf),
    "ReduceL2": (0.0, math.inf),
    "ReduceSumSquare": (0.0, math.inf),
    "Softmax": (0.0, 1.0),
    "Softplus": (0.0, math.inf),
    "Softsign": (-1.0, 1.0),
}
"""Operators whose results lie there for every input."""


def interval(value: ir.Value | None, found: Found | None = None, depth: int = DEPTH) -> Interval:
    """The interval in which every entry of `value` lies; `found` keeps those of its inputs."""
    found = {} if found is None else found
    if value not in found:
        found[value] = _interval(value, found, depth)
    return found[value]


def _interval(value: ir.Value | None, found: Found, depth: int) -> Interval:
    array = constant(value)
    if array is not None:
        if array.size == 0 or array.dtype.kind not in "fiu":
            return ANYWHERE
        return float(array.min()), float(array.max())
    node = None if value is None else value.producer()
    if node is None or node.domain or depth == 0:
        return ANYWHERE
    if node.op_type in BETWEEN:
        return BETWEEN[node.op_type]
    rule = RULES.get(node.op_type)
    if rule is None:
        return ANYWHERE
    given = [ANYWHERE if x is None else interval(x, found, depth - 1) for x in node.inputs]
    return rule(node, given)


Given = list[Interval]


def _clip(node: ir.Node, given: Given) -> Interval:
    low, high = given[0]
    least = given[1][1] if input_of(node, 1) is not None else -math.inf
    most = given[2][0] if input_of(node, 2) is not None else math.inf
    floor = given[1][0] if input_of(node, 1) is not None else -math.inf
    ceiling = given[2][1] if input_of(node, 2) is not None else math.inf
    return min(max(low, floor), most), min(max(high, least), ceiling)


def _pow(node: ir.Node, given: Given) -> Interval:
    power = constant(node.inputs[1])
    even = power is not None and power.size == 1 and power.item() in (2, 4)
    (low, high), (least, most) = given
    if low >= 0 and high <= 1 and least >= 0:
        return 0.0, 1.0
    del most
    return (0.0, math.inf) if even or low >= 0 else ANYWHERE


def _add(node: ir.Node, given: Given) -> Interval:
    """A sum; b + (1 - b) s lies between b and 1 where s does between 0 and 1."""
    low, high = given[0][0] + given[1][0], given[0][1] + given[1][1]
    for bound, (least, most), other in zip(node.inputs, given, reversed(node.inputs), strict=False):
        rest = producer(other, "Mul")
        for factor, share in factors(other) if rest is not None and most <= 1.0 else ():
            left = producer(factor, "Sub")
            whole = constant(left.inputs[0]) if left is not None else None
            if left is None or left.inputs[1] is not bound or whole is None or (whole != 1).any():
                continue
            start, end = interval(share)
            if start >= 0.0 and end <= 1.0:
                return max(low, least), min(high, 1.0)
    return low, high


def _quotient(node: ir.Node, given: Given) -> Interval:
    """A quotient; a part of a sum of what is not negative is at most the whole."""
    low, high = _div(given[0], given[1])
    total = producer(node.inputs[1], "Add")
    if total is not None and node.inputs[0] in total.inputs:
        parts = [interval(x) for x in total.inputs]
        if all(least >= 0.0 for least, _ in parts):
            return max(low, 0.0), min(high, 1.0)
    return low, high


def _sub(node: ir.Node, given: Given) -> Interval:
    low, high = given[0][0] - given[1][1], given[0][1] - given[1][0]
    return (low, min(high, 0.0)) if _exceeded(*node.inputs[:2]) else (low, high)


def _where(node: ir.Node, given: Given) -> Interval:
    """A choice; where a number is taken if it is above a limit, it is not below that."""
    choice, taken = given[1], node.inputs[1]
    test = None if node.inputs[0] is None else node.inputs[0].producer()
    above = test is not None and test.op_type in ("Greater", "GreaterOrEqual")
    if test is not None and above and taken is not None and test.inputs[0] is taken:
        limit = constant(test.inputs[1])
        if limit is not None and limit.size:
            choice = max(choice[0], float(limit.min())), choice[1]
    return _joined([choice, given[2]])


def _sum_of_products(node: ir.Node, given: Given) -> Interval:
    total = given[0]
    for other in given[1:] if node.op_type == "Einsum" else []:
        total = _mul(total, other)
    return (0.0 if total[0] >= 0 else -math.inf, 0.0 if total[1] <= 0 else math.inf)


def _joined(given: list[Interval]) -> Interval:
    return min(low for low, _ in given), max(high for _, high in given)


def _exceeded(value: ir.Value | None, limit: ir.Value | None) -> bool:
    """Whether `limit` is a maximum that `value` takes part in."""
    node = None if limit is None else limit.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Max" and any(x is value for x in node.inputs)


def _times(a: float, b: float) -> float:
    return 0.0 if 0.0 in (a, b) else a * b


def _mul(a: Interval, b: Interval) -> Interval:
    ends = [_times(x, y) for x in a for y in b]
    return min(ends), max(ends)


def _div(a: Interval, b: Interval) -> Interval:
    low, high = b
    if low > 0.0 or high < 0.0:
        return _mul(a, (1 / high, 1 / low))
    return (0.0, math.inf) if a[0] >= 0.0 and low >= 0.0 else ANYWHERE


def _rising(function: Callable[[float], float]) -> Callable[[ir.Node, Given], Interval]:
    return lambda _, given: (function(given[0][0]), function(given[0][1]))


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _sigmoid(x: float) -> float:
    return 1 / (1 + _exp(-x))


RULES: dict[str, Callable[[ir.Node, Given], Interval]] = {
    "Add": _add,
    "Clip": _clip,
    "Concat": lambda _, g: _joined(g),
    "Div": _quotient,
    "Einsum": _sum_of_products,
    "Erf": _rising(math.erf),
    "Exp": _rising(_exp),
    "Log": _rising(lambda x: -math.inf if x <= 0 else math.log(x) if x < math.inf else x),
    "Max": lambda _, g: (max(low for low, _ in g), max(high for _, high in g)),
    "Min": lambda _, g: (min(low for low, _ in g), min(high for _, high in g)),
    "Mul": lambda _, g: _mul(g[0], g[1]),
    "Neg": lambda _, g: (-g[0][1], -g[0][0]),
    "Pow": _pow,
    "Reciprocal": lambda _, g: _div((1.0, 1.0), g[0]),
    "ReduceSum": _sum_of_products,
    "Relu": _rising(lambda x: max(x, 0.0)),
    "Sigmoid": _rising(_sigmoid),
    "Sqrt": _rising(lambda x: math.sqrt(max(x, 0.0))),
    "Sub": _sub,
    "Sum": lambda _, g: (sum(low for low, _ in g), sum(high for _, high in g)),
    "Tanh": _rising(math.tanh),
    "Where": _where,
    **dict.fromkeys(MOVES, lambda _, g: g[0]),
}
