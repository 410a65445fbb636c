"""Whether the rows of a batch stay apart: what a row gives may not depend on its neighbours.

A session steps rows together that came together by chance, resets some, and leaves out those that
have ended.  That is right only where every node keeps rows apart, which is shown here node by node:
each value that depends on the data of rows has the batch along one axis, and no operator sums,
orders, shifts or picks along that axis.  An operator that is not known to keep rows apart is
refused.  Sizes are no data, but for what computes with the number of rows (`_row_counts`).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.operators import BY_TYPE
from intaglio.passes.graph import attribute, constant, describe, dims, integers, producer, type_of
from intaglio.state import BATCH

from ._row_counts import row_counts
from .time_rules import ELEMENTWISE


@dataclass(frozen=True)
class Apart:
    """The batch lies along `axis`; `inner` is what comes before it where axes were merged."""

    axis: int
    inner: tuple[str, ...] = ()


Facts = Mapping[ir.Value, Apart]


def check_rows(graph: ir.Graph) -> None:
    """Show that `graph`, in training form, keeps rows apart.

    Raises:
        PassError: if a node does not, or is not known to; it is named.
    """
    _check(graph, {})


def _check(graph: ir.Graph, outside: Mapping[ir.Value, Apart]) -> None:
    facts, counts = dict(outside), row_counts(graph)
    for value in graph.inputs:
        places = _places(value)
        if places:
            facts[value] = Apart(places[0])
    for node in graph:
        if node.op_type in ("Shape", "Size") or not any(v in facts for v in node.inputs):
            continue
        if type_of(node) in ELEMENTWISE and any(value in counts for value in node.inputs):
            raise _mixes(node, "computes with the number of rows, or the place of each")
        for body in _bodies(node):
            _check(body, facts)
        for output in node.outputs:
            if output.uses() or output.is_graph_output():
                facts[output] = _fact(node, output, facts)
            if output.is_graph_output() and output in counts:
                raise _mixes(node, "gives the number of rows, or the place of each, with them")


def _bodies(node: ir.Node) -> list[ir.Graph]:
    kinds = ir.AttributeType
    return [each.as_graph() for each in node.attributes.values() if each.type == kinds.GRAPH]


def _fact(node: ir.Node, output: ir.Value, facts: Facts) -> Apart:
    key = type_of(node)
    first = key in BY_TYPE or key in ROWS_FIRST
    if dims(output) is None and first:
        found = {_first(node, v, facts[v]) for v in node.inputs if v is not None and v in facts}
        return found.pop()
    if dims(output) is None:
        raise _mixes(node, "gives a value of unknown shape")
    places = _places(output)
    if not places:
        raise _mixes(node, f"gives {list(dims(output) or ())}, which has no axis for them")
    if len(places) > 1:
        raise _mixes(node, "compares each row with all others")
    given = [
        (index, v, facts[v]) for index, v in enumerate(node.inputs) if v is not None and v in facts
    ]
    if key in ELEMENTWISE or key in ALIGNED:
        found = {_aligned(v, fact, output) for _, v, fact in given}
    elif key in KEEPS_ORDER:
        found = {_reshaped(node, v, fact, output) for _, v, fact in given}
    elif key in ALONG:
        found = {_along(node, fact, ALONG[key](node, len(dims(v) or ()))) for _, v, fact in given}
        found = {Apart(places[0], fact.inner) for fact in found}
    elif key in PLACED:
        found = {PLACED[key](node, index, v, fact) for index, v, fact in given}
    elif first:
        found = {_first(node, v, fact) for _, v, fact in given}
    elif _bodies(node):
        if any(fact.inner for _, _, fact in given):
            raise _mixes(node, "takes them behind other axes that they are merged with")
        found = {Apart(places[0])}  # the body was looked at
    else:
        raise _mixes(node, "is not known to keep them apart")
    if found != {fact for fact in found if fact.axis == places[0]} or len(found) > 1:
        raise _mixes(node, "brings entries of different rows together")
    return found.pop()


def _mixes(node: ir.Node, why: str) -> PassError:
    return PassError(
        f"{describe(node)} mixes the rows of a batch, or may: it {why}. A session steps rows that "
        "came together by chance, so each has to be computed from its own inputs alone."
    )


def _places(value: ir.Value) -> list[int]:
    return [axis for axis, dim in enumerate(dims(value) or ()) if BATCH in str(dim)]


def _aligned(value: ir.Value, fact: Apart, output: ir.Value) -> Apart:
    """Axes of numpy's broadcasting count from the back."""
    shift = len(dims(output) or ()) - len(dims(value) or ())
    return Apart(fact.axis + shift, fact.inner)


def factors(shape: Sequence[int | str]) -> Counter[str]:
    """A product of dimensions as its symbols and the primes of its numbers."""
    found: Counter[str] = Counter()
    for dim in shape:
        text = str(dim)
        whole = any(sign in text for sign in "+-/")
        for factor in [text] if whole else text.replace(" ", "").strip("()").split("*"):
            found.update(_primes(int(factor)) if factor.isdigit() else [factor])
    return found


def _primes(number: int) -> list[str]:
    found, prime = [], 2
    while number > 1:
        while number % prime == 0:
            found.append(str(prime))
            number //= prime
        prime += 1
    return found


def _reshaped(node: ir.Node, value: ir.Value, fact: Apart, output: ir.Value) -> Apart:
    """What comes before the batch, in the order of entries, has to come before it still."""
    before, after = dims(value) or (), dims(output) or ()
    axis = _places(output)[0]
    lead = factors(before[: fact.axis]) + Counter(fact.inner)
    outer = factors(after[:axis])
    if outer - lead:
        raise _mixes(node, f"turns {list(before)} into {list(after)}, another order of entries")
    inner = lead - outer
    return Apart(axis, tuple(sorted(inner.elements())))


def _along(node: ir.Node, fact: Apart, axes: Sequence[int] | None) -> Apart:
    """Operators that work along `axes`, of which none may be the batch; None is all of them."""
    if axes is None or fact.axis in axes:
        raise _mixes(node, "works along their axis")
    return fact


def _axis(default: int) -> Callable[[ir.Node, int], list[int]]:
    def axes(node: ir.Node, rank: int) -> list[int]:
        return [int(attribute(node, "axis", default)) % rank]

    return axes


def _from_axis(default: int) -> Callable[[ir.Node, int], list[int]]:
    """The axes from `axis` to the last."""

    def axes(node: ir.Node, rank: int) -> list[int]:
        return list(range(int(attribute(node, "axis", default)) % rank, rank))

    return axes


def _reduced(node: ir.Node, rank: int) -> list[int] | None:
    given = node.inputs[1] if len(node.inputs) > 1 else None
    axes = attribute(node, "axes") if given is None else integers(given)
    if axes is None and given is None:
        return [] if attribute(node, "noop_with_empty_axes", 0) else None
    return None if axes is None else [int(axis) % rank for axis in axes]


def _input_axes(place: int) -> Callable[[ir.Node, int], list[int] | None]:
    """The axes that an input lists; all of them where it is absent."""

    def axes(node: ir.Node, rank: int) -> list[int] | None:
        value = node.inputs[place] if len(node.inputs) > place else None
        found = list(range(rank)) if value is None else integers(value)
        return None if found is None else [axis % rank for axis in found]

    return axes


def _sliced(node: ir.Node, rank: int) -> list[int] | None:
    """The axes of which a part is taken, or that are turned round."""
    axes = _input_axes(3)(node, rank)
    steps = integers(node.inputs[4]) if len(node.inputs) > 4 else [1] * len(axes or ())
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if axes is None or steps is None or before is None or after is None:
        return axes
    cut = zip(axes, steps, strict=True)
    return [axis for axis, step in cut if step != 1 or before[axis] != after[axis]]


def _padded(node: ir.Node, rank: int) -> list[int] | None:
    axes = _input_axes(3)(node, rank)
    pads = integers(node.inputs[1])
    if axes is None or pads is None:
        return axes
    count = len(axes)
    return [axis for index, axis in enumerate(axes) if pads[index] or pads[index + count]]


def _normalised(node: ir.Node, rank: int) -> list[int] | None:
    """Normalisations over all but batch and channels, or with statistics of training."""
    return None if attribute(node, "training_mode", 0) else list(range(1, rank))


ALONG: Mapping[str, Callable[[ir.Node, int], Sequence[int] | None]] = {
    **dict.fromkeys("Softmax LogSoftmax Hardmax LpNormalization TopK".split(), _axis(-1)),
    **dict.fromkeys(("ArgMax", "ArgMin", "Concat", "Split", "GatherElements"), _axis(0)),
    **dict.fromkeys(("ScatterElements",), _axis(0)),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _from_axis(-1)),
    **{f"Reduce{kind}": _reduced
       for kind in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()},
    **dict.fromkeys(("CumSum", "CumProd"), _input_axes(1)),
    "Slice": _sliced,
    "Pad": _padded,
    "BatchNormalization": _normalised,
    "InstanceNormalization": _normalised,
    "GroupNormalization": _normalised,
}  # fmt: skip
"""Operators along axes of their own, and which ones: the batch may be none of them."""

KEEPS_ORDER = frozenset("Flatten Reshape Squeeze Unsqueeze".split())
ALIGNED = frozenset("Dropout Expand Trilu".split())
ROWS_FIRST = frozenset(
    "AveragePool Conv ConvTranspose GlobalAveragePool GlobalMaxPool MaxPool Resize GridSample "
    "DepthToSpace SpaceToDepth RotaryEmbedding TensorScatter".split()
)
"""Operators whose first axis is the batch, and axes behind it perhaps, each computed for itself."""


def _first(node: ir.Node, value: ir.Value, fact: Apart) -> Apart:
    if fact.axis != 0 or fact.inner:
        raise _mixes(node, f"takes {list(dims(value) or ())}, of which the first axis is not them")
    return fact


def _transpose(node: ir.Node, _index: int, value: ir.Value, fact: Apart) -> Apart:
    order = list(attribute(node, "perm") or reversed(range(len(dims(value) or ()))))
    return Apart(order.index(fact.axis), fact.inner)


def _matmul(node: ir.Node, index: int, value: ir.Value, fact: Apart) -> Apart:
    rank = len(dims(value) or ())
    summed = rank - 1 if index == 0 or rank == 1 else rank - 2
    if fact.axis == summed:
        raise _mixes(node, "sums over them")
    other = len(dims(node.inputs[1 - index]) or ())
    shift = max(rank, other) - rank
    return Apart(fact.axis + shift, fact.inner)


def _gemm(node: ir.Node, index: int, _value: ir.Value, fact: Apart) -> Apart:
    if index == 2:
        return fact
    turned = bool(attribute(node, ("transA", "transB")[index], 0))
    if fact.axis != (int(turned) if index == 0 else int(not turned)):
        raise _mixes(node, "sums over them")
    return Apart(index, fact.inner)


def _gather(node: ir.Node, index: int, _value: ir.Value, fact: Apart) -> Apart:
    table, places = node.inputs[:2]
    assert table is not None
    assert places is not None
    axis = int(attribute(node, "axis", 0)) % len(dims(table) or ())
    if index == 1:
        return Apart(axis + fact.axis, fact.inner)
    if fact.axis == axis:
        raise _mixes(node, "picks along their axis")
    added = len(dims(places) or ()) - 1
    return Apart(fact.axis + added * (fact.axis > axis), fact.inner)


def _einsum(node: ir.Node, index: int, _value: ir.Value, fact: Apart) -> Apart:
    terms, arrow, result = str(attribute(node, "equation")).replace(" ", "").partition("->")
    letter = terms.split(",")[index][fact.axis]
    if not arrow or letter not in result or "." in terms:
        raise _mixes(node, "sums over them")
    return Apart(result.index(letter), fact.inner)


def _gather_nd(node: ir.Node, index: int, value: ir.Value, fact: Apart) -> Apart:
    if index == 1 and fact.axis < len(dims(value) or ()) - 1:  # the rows of the places stay
        return fact
    dims_apart = int(attribute(node, "batch_dims", 0))
    if fact.axis < dims_apart:
        return fact
    places = dims(node.inputs[1]) or ()
    picked = places[-1] if places else None  # so many axes in front
    if index == 0 and not dims_apart and isinstance(picked, int) and fact.axis >= picked:
        return Apart(len(places) - 1 + fact.axis - picked, fact.inner)
    own = _own_row(node.inputs[1]) if fact == Apart(0) and index == 0 and not dims_apart else None
    if own is None:
        raise _mixes(node, "picks along their axis")
    return Apart(own)


def _scatter_nd(node: ir.Node, index: int, _value: ir.Value, fact: Apart) -> Apart:
    places = dims(node.inputs[1]) or ()
    picked = places[-1] if places else None
    first = {0: picked, 2: len(places) - 1}.get(index)
    if not isinstance(picked, int) or not isinstance(first, int) or fact.axis < first:
        raise _mixes(node, "writes along their axis")
    return Apart(fact.axis - first + picked, fact.inner)


def _own_row(places: ir.Value | None) -> int | None:
    """The axis of the rows of `places` [.., places], whose first number is the row itself.

    That is 0, 1, .. along the batch, repeated along other axes, as masks of libraries index rows.
    """
    joined = producer(places, "Concat")
    value = None if joined is None else joined.inputs[0]
    rank = len(dims(value) or ())
    if joined is None or attribute(joined, "axis") not in (-1, rank - 1) or rank < 2:
        return None
    if (dims(value) or ())[-1] != 1:
        return None
    steps: list[ir.Node] = []
    while (node := producer(value, "Unsqueeze", "Expand", "Cast", "Identity")) is not None:
        steps.append(node)
        value = node.inputs[0]
    counted = producer(value, "Range")
    if counted is None or dims(value) != (BATCH,):
        return None
    start, step = constant(counted.inputs[0]), constant(counted.inputs[2])
    if start is None or step is None or start.any() or (step != 1).any():
        return None
    axis, before = 0, 1
    for node in reversed(steps):
        size = len(dims(node.outputs[0]) or ())
        if node.op_type == "Unsqueeze":
            added = {each % size for each in integers(node.inputs[1]) or ()}
            axis = [each for each in range(size) if each not in added][axis]
        else:
            axis += size - before
        before = size
    return axis


def _one_hot(node: ir.Node, _index: int, value: ir.Value, fact: Apart) -> Apart:
    rank = len(dims(value) or ()) + 1
    axis = int(attribute(node, "axis", -1)) % rank
    return Apart(fact.axis + (fact.axis >= axis), fact.inner)


def _tile(node: ir.Node, _index: int, _value: ir.Value, fact: Apart) -> Apart:
    repeats = integers(node.inputs[1])
    if repeats is None or repeats[fact.axis] != 1:
        raise _mixes(node, "repeats them")
    return fact


def _recurrent(node: ir.Node, index: int, _value: ir.Value, fact: Apart) -> Apart:
    """The standard's RNN, GRU and LSTM: [T, B, I] in, [T, directions, B, H] out."""
    turned = bool(attribute(node, "layout", 0))
    if fact.axis != (0 if turned else 1):
        raise _mixes(node, "runs along them")
    del index
    return Apart(0 if turned else 2, fact.inner)


PLACED: Mapping[str, Callable[[ir.Node, int, ir.Value, Apart], Apart]] = {
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "OneHot": _one_hot,
    "RNN": _recurrent,
    "ScatterND": _scatter_nd,
    "Tile": _tile,
    "Transpose": _transpose,
}
"""Operators that put the batch elsewhere, or take it at one place."""
