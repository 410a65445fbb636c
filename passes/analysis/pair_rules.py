"""From the axes of a node's result to those of its inputs: one small rule per operator.

Each rule answers for a node whose result has a query axis, a key axis or both, which axes of its
inputs hold the entries that result (i, j) is made of; None where it is made of others as well.
"""

from collections.abc import Callable, Sequence

import onnx_ir as ir

from intaglio.passes.graph import END, Shape, attribute, dims, input_of, integers
from intaglio.state import BATCH, TIME, entries_of

from ._rearranging import factors
from .pairs import NONE, Axes, surplus, time_axes
from .time_facts import normal, refuse
from .time_rules import ELEMENTWISE

CHANNELS = 2  # of a convolution: rows and channels come before what it goes over
Places = Sequence[Axes | None]  # None for an input that is not read: sizes and axes


def inputs_of(node: ir.Node, axes: Axes) -> Places | None:
    """The axes of each input of `node`, whose result has `axes`."""
    if node.domain or len(node.outputs) != 1:
        return None
    if node.op_type in ELEMENTWISE or node.op_type == "Where":
        return _elementwise(node, axes)
    rule = RULES.get(node.op_type)
    return None if rule is None else rule(node, axes)


def _rank(value: ir.Value | None) -> int:
    return len(dims(value) or ())


def _mapped(axes: Axes, place: Callable[[int], int | None]) -> Axes:
    return Axes(*(None if axis is None else place(axis) for axis in (axes.query, axes.key)))


def _aligned(node: ir.Node, axes: Axes, value: ir.Value | None) -> Axes:
    """Axes of an input that is broadcast to the result."""
    shape, rank = dims(value), _rank(node.outputs[0])
    if shape is None:
        raise refuse(node, "has an input of unknown shape.")

    def place(axis: int) -> int | None:
        own = axis - rank + len(shape)
        return own if own >= 0 and shape[own] != 1 else None

    return _mapped(axes, place)


def _elementwise(node: ir.Node, axes: Axes) -> Places:
    return [None if value is None else _aligned(node, axes, value) for value in node.inputs]


def _first(node: ir.Node, found: Axes) -> Places:
    """The first input is read so, the others are sizes and axes."""
    return [found, *[None] * (len(node.inputs) - 1)]


def _transpose(node: ir.Node, axes: Axes) -> Places:
    perm = list(attribute(node, "perm") or reversed(range(_rank(node.inputs[0]))))
    return [_mapped(axes, lambda axis: perm[axis])]


def _unsqueeze(node: ir.Node, axes: Axes) -> Places | None:
    added = integers(node.inputs[1])
    if added is None:
        return None
    rank = _rank(node.outputs[0])
    new = {normal(axis, rank) for axis in added}
    kept = [axis for axis in range(rank) if axis not in new]
    return _first(node, _mapped(axes, kept.index))


def _squeeze(node: ir.Node, axes: Axes) -> Places | None:
    gone = integers(input_of(node, 1))
    if gone is None:
        return None
    rank = _rank(node.inputs[0])
    kept = [axis for axis in range(rank) if axis not in {normal(a, rank) for a in gone}]
    return _first(node, _mapped(axes, lambda axis: kept[axis]))


def _reshape(node: ir.Node, axes: Axes) -> Places | None:
    before, after = dims(node.inputs[0]) or (), dims(node.outputs[0]) or ()
    places = {
        axis: next(
            (
                own
                for own, dim in enumerate(before)
                if dim == after[axis] and factors(before[:own]) == factors(after[:axis])
            ),
            None,
        )
        for axis in (axes.query, axes.key)
        if axis is not None
    }
    if None in places.values():
        return None
    return _first(node, _mapped(axes, lambda axis: places[axis]))


def _expand(node: ir.Node, axes: Axes) -> Places:
    return _first(node, _aligned(node, axes, node.inputs[0]))


def _constant_of_shape(node: ir.Node, axes: Axes) -> Places:
    del node, axes
    return [None]


def lead(node: ir.Node | None, axis: int) -> int | None:
    """How many entries a Concat puts before a sequence along `axis`, if it joins these two."""
    if node is None or node.op_type != "Concat" or node.domain or len(node.inputs) != 2:
        return None
    first, second = ((dims(value) or ("?",) * (axis + 1))[axis] for value in node.inputs)
    along = normal(attribute(node, "axis"), _rank(node.outputs[0])) == axis
    return first if along and isinstance(first, int) and entries_of(second) else None


def shift(node: ir.Node, axes: Axes) -> int | None:
    """How many places a Slice of a sequence, with entries joined before it, is behind; else None.

    It takes T of the n + T entries: from the first, n behind, to the last, none.
    """
    axis = axes.query if axes.query is not None else axes.key
    if node.op_type != "Slice" or axis is None or None not in (axes.query, axes.key):
        return None
    count = lead(None if node.inputs[0] is None else node.inputs[0].producer(), axis)
    starts, steps = integers(node.inputs[1]), integers(input_of(node, 4))
    picked = integers(input_of(node, 3)) or list(range(len(starts or ())))
    if count != 1 or starts is None or len(starts) != 1 or steps not in (None, [1]):
        return None
    cut = normal(picked[0], _rank(node.outputs[0])) == axis
    whole = entries_of((dims(node.outputs[0]) or ("?",) * (axis + 1))[axis]) is not None
    return count - starts[0] if cut and whole and 0 <= starts[0] <= count else None


def first_of(node: ir.Node) -> int | None:
    """The axis of time of which a Slice takes the first token alone; None if it is another."""
    timed = time_axes(node.inputs[0]) if node.op_type == "Slice" and not node.domain else []
    starts, ends = integers(node.inputs[1]) if timed else None, dims(node.outputs[0]) or ()
    picked = integers(input_of(node, 3)) or [0]
    steps = [1] if input_of(node, 4) is None else integers(input_of(node, 4))
    if len(timed) != 1 or starts != [0] or steps != [1]:
        return None
    same = normal(picked[0], len(ends)) == timed[0] and ends[timed[0]] == 1
    return timed[0] if same else None


def _tile(node: ir.Node, axes: Axes) -> Places | None:
    repeats = integers(node.inputs[1])
    if repeats is None and axes.query is None:  # for each row again, all behind each other
        before, after = dims(node.inputs[0]) or ("?",), dims(node.outputs[0]) or ("?",)
        rows = before[1:] == after[1:] and after[0] in (f"{before[0]}*{BATCH}", BATCH)
        return _first(node, axes) if rows and axes.key != 0 else None
    if repeats is None or any(repeats[axis] != 1 for axis in axes_of(axes)):
        return None
    return _first(node, axes)


def _cum_sum(node: ir.Node, axes: Axes) -> Places | None:
    """A sum over the keys; or from the first token on, of positions, which bounds may tell."""
    along = integers(node.inputs[1])
    if along is not None and None not in (axes.query, axes.key):
        over = normal(along[0], _rank(node.inputs[0]))
        return None if over == axes.query else _first(node, axes)
    plain = not attribute(node, "reverse", 0) and not attribute(node, "exclusive", 0)
    if along is None or not plain or None not in (axes.query, axes.key):
        return None
    return _first(node, axes) if normal(along[0], _rank(node.inputs[0])) in axes_of(axes) else None


def axes_of(axes: Axes) -> list[int]:
    """The axes that have a role."""
    return [axis for axis in (axes.query, axes.key) if axis is not None]


def _slice(node: ir.Node, axes: Axes) -> Places | None:
    """Along time everything is kept, or rows 0 .. T-1 of a table are taken, or a surplus cut."""
    before, after = dims(node.inputs[0]) or (), dims(node.outputs[0]) or ()
    starts, steps = integers(node.inputs[1]), integers(input_of(node, 4))
    picked = integers(input_of(node, 3)) or list(range(len(starts or ())))
    picked = [normal(axis, len(before)) for axis in picked]
    if len(before) != len(after) or (input_of(node, 4) is not None and steps is None):
        return None
    for axis in (axes.query, axes.key):
        if axis is None or before[axis] == after[axis]:
            continue
        at = picked.index(axis)
        if starts is None or starts[at] != 0 or (steps or [1] * len(picked))[at] != 1:
            return None
        if entries_of(after[axis]) is None or not (
            isinstance(before[axis], int) or surplus(before[axis])
        ):
            return None
    if axes.key is None and (of_none := _of_no_token(node, before, after)) is not None:
        return _first(node, Axes(axes.query, of_none))
    cut = [axis for axis in picked if before[axis] == after[axis]]
    if any(step != 1 for step, axis in zip(steps or [], picked, strict=False) if axis in cut) and (
        set(cut) & {axes.query, axes.key}
    ):
        return None
    return _first(node, _mapped(axes, lambda axis: None if isinstance(before[axis], int) else axis))


def _of_no_token(node: ir.Node, before: Shape, after: Shape) -> int | None:
    """The axis of keys of which a Slice takes entries behind those of tokens alone."""
    starts, ends, axes, steps = (integers(input_of(node, place)) for place in (1, 2, 3, 4))
    if starts is None or ends is None or axes is None or len(axes) != 1 or steps not in (None, [1]):
        return None
    axis = normal(axes[0], len(before))
    extra = surplus(before[axis])
    behind = extra and isinstance(after[axis], int) and -extra <= starts[0] < 0
    return axis if behind and (ends[0] < 0 or ends[0] >= END) else None


def _gather(node: ir.Node, axes: Axes) -> Places | None:
    picks, where = _rank(node.inputs[1]), normal(attribute(node, "axis", 0), _rank(node.inputs[0]))
    timed = time_axes(node.inputs[0])

    def data(axis: int) -> int | None:
        if axis < where:
            return axis
        return axis - picks + 1 if axis >= where + picks else None

    def index(axis: int) -> int | None:
        return axis - where if where <= axis < where + picks else None

    places = _mapped(axes, index)
    if where in timed:  # a sequence of positions, at positions that are computed
        alone = timed == [where] and len(axes_of(places)) == len(axes_of(axes))
        return [Axes(key=where), places] if alone else None
    return [_mapped(axes, data), places]


def gathers_along(node: ir.Node) -> int | None:
    """The axis along which a node picks entries; None where it picks none, or along several."""
    if node.op_type in ("Gather", "GatherElements"):
        return normal(attribute(node, "axis", 0), _rank(node.inputs[0]))
    depth = (dims(node.inputs[1]) or ("?",))[-1] if node.op_type == "GatherND" else None
    return 0 if depth == 1 else None


def _gather_elements(node: ir.Node, axes: Axes) -> Places | None:
    """For each pair an entry of the query's scores by distance; or of one of both, by number."""
    along = normal(attribute(node, "axis", 0), _rank(node.inputs[0]))
    if isinstance((dims(node.inputs[0]) or ("?",) * (along + 1))[along], int):
        return [_mapped(axes, lambda axis: None if axis == along else axis), axes]
    return [axes, axes] if along == axes.key and axes.query is not None else None


def _conv(node: ir.Node, axes: Axes) -> Places | None:
    """A convolution of kernel 1 mixes heads, and each pair stays alone."""
    kernel, given = dims(node.inputs[1]) or ("?",), dims(node.inputs[0]) or ("?",)
    alone = set(kernel[2:]) == {1} and dims(node.outputs[0])[2:] == given[2:]  # type: ignore[index]
    if not alone or min(axes_of(axes), default=0) < CHANNELS:
        return None
    return [axes, *([NONE] * (len(node.inputs) - 1))]


def _gather_nd(node: ir.Node, axes: Axes) -> Places | None:
    places = dims(node.inputs[1]) or ("?",)
    depth, lead = places[-1], len(places) - 1
    if attribute(node, "batch_dims", 0) or not isinstance(depth, int):
        return None
    timed = time_axes(node.inputs[0])
    if timed == [0] and depth == 1 and all(axis < lead for axis in axes_of(axes)):
        return [Axes(key=0), axes]
    if any(axis < depth for axis in timed):
        return None
    data = _mapped(axes, lambda axis: axis - lead + depth if axis >= lead else None)
    return [data, _mapped(axes, lambda axis: axis if axis < lead else None)]


def _concat(node: ir.Node, axes: Axes) -> Places | None:
    """Beside each other; or entries of no token after those of the keys, as sinks are."""
    joined = normal(attribute(node, "axis"), _rank(node.outputs[0]))
    if joined == axes.query:
        return None
    found: list[Axes] = []
    for index, value in enumerate(node.inputs):
        shape = dims(value) or ()
        if joined == axes.key:
            timed = TIME in str(shape[joined])
            if timed is not (index == 0) or (timed and surplus(shape[joined]) != 0):
                return None
            found.append(Axes(axes.query, joined if timed else None))
        else:
            found.append(axes)
    return found


def _softmax(node: ir.Node, axes: Axes) -> Places | None:
    along = normal(attribute(node, "axis", -1), _rank(node.inputs[0]))
    return None if along == axes.query else [axes]


def _reduce(node: ir.Node, axes: Axes) -> Places | None:
    """Over other axes than time, or over the keys."""
    given, rank = node.inputs[0], _rank(node.inputs[0])
    if node.op_type in ("ArgMax", "ArgMin"):
        gone = {normal(attribute(node, "axis", 0), rank)}
    else:
        named = integers(input_of(node, 1)) or attribute(node, "axes") or range(rank)
        gone = {normal(axis, rank) for axis in named}
    keep = attribute(node, "keepdims", 1)
    kept = [axis for axis in range(rank) if axis not in gone or keep]
    found = _mapped(axes, lambda axis: kept[axis])
    over = [axis for axis in time_axes(given) if axis in gone]
    if not over:
        return _first(node, found)
    if len(over) > 1 or found.key is not None or node.op_type.startswith("Arg"):
        return None
    return _first(node, Axes(found.query, over[0]))


def _matmul(node: ir.Node, axes: Axes) -> Places | None:
    """Products of queries and keys, or of weights and values, which sums over the keys."""
    left, right = node.inputs
    rank, ranks = _rank(node.outputs[0]), (_rank(left), _rank(right))
    if min(ranks) < 2:
        return None

    def place(side: int) -> Callable[[int], int | None]:
        def own(axis: int) -> int | None:
            if axis == rank - 1 - side:  # the other one's rows or columns
                return None
            at = axis - rank + ranks[side]
            shape = dims(node.inputs[side]) or ()
            return at if at >= 0 and shape[at] != 1 else None

        return own

    found = [_mapped(axes, place(0)), _mapped(axes, place(1))]
    summed = (ranks[0] - 1, ranks[1] - 2)
    over = [summed[side] in time_axes(node.inputs[side]) for side in (0, 1)]
    if not any(over):
        return found
    if not all(over) or any(side.key is not None for side in found):
        return None
    return [Axes(side.query, at) for side, at in zip(found, summed, strict=True)]


def _gemm(node: ir.Node, axes: Axes) -> Places | None:
    """Rows of tokens by a matrix that is the same for all."""
    row = 1 if attribute(node, "transA", 0) else 0
    if axes_of(axes) != [0] or time_axes(node.inputs[0]) != [row]:
        return None
    added = [_aligned(node, axes, value) for value in node.inputs[2:]]
    return [_mapped(axes, lambda _: row), NONE, *added]


def _trilu(node: ir.Node, axes: Axes) -> Places | None:
    if {axes.query, axes.key} != {_rank(node.outputs[0]) - 1, _rank(node.outputs[0]) - 2}:
        return None
    return [axes, *([NONE] if input_of(node, 1) is not None else [None] * (len(node.inputs) - 1))]


RULES: dict[str, Callable[[ir.Node, Axes], Places | None]] = {
    "Concat": _concat,
    "CumSum": _cum_sum,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    **dict.fromkeys(("ReduceMax", "ReduceSum", "ReduceLogSumExp", "ReduceMin"), _reduce),
}
