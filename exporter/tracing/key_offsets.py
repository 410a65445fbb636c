"""Biases of keys that are counted from the last one become ones that are counted from the query.

MPT and many after it write ALiBi (Press et al., 2022) as ``slopes * arange(1 - T, 1)``, or take the
last T entries of a table of it: what a key adds then depends on how many keys there are, which a
stream does not know yet.  A softmax is the same when all that it normalises moves by one number,
so what is a slope times the key's index may be counted from anywhere, in each row from its own
place.  Terms that are not affine in the index stay as they are.
"""

import contextlib
import itertools
import operator
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._pytree import tree_leaves

from .size_nodes import NotPlainError, SizeNodes

aten = torch.ops.aten
SOFTMAX = frozenset([aten.softmax.int, aten._softmax.default])  # noqa: SLF001
ATTENTION = aten.scaled_dot_product_attention.default
ARANGES = frozenset([aten.arange.default, aten.arange.start, aten.arange.start_step])
TO_COPY = aten._to_copy.default  # noqa: SLF001
CASTS = frozenset([aten.to.dtype, aten.to.dtype_layout, TO_COPY])
BEGINS = {
    aten.arange.start: 0,
    aten.arange.start_step: 0,
    aten.slice.Tensor: 2,
    aten.select.int: 2,
}
PLAIN = {
    aten.add.Tensor: operator.add,
    aten.sub.Tensor: operator.sub,
    aten.mul.Tensor: operator.mul,
    aten.div.Tensor: operator.truediv,
}
VIEWS = frozenset([aten.view.default, aten.reshape.default, aten.expand.default])
FOLLOWED = frozenset(
    [*CASTS, *VIEWS, aten.neg.default, aten.flip.default, aten.slice.Tensor,
     aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims]
)  # fmt: skip
WIDE = frozenset([torch.float32, torch.float64])
HIDDEN = -1e9  # what is at most this has no weight, whatever its row moves by
ROUNDED = 4  # units of rounding by which a table may differ from a straight line


def settle_key_offsets(program: ExportedProgram) -> None:
    """Count the keys of each softmax over a free axis in `program` from its query."""
    graph = program.graph
    values = _values(program)
    sizes = SizeNodes(graph)
    for node in list(graph.nodes):
        given = _normalised(node)
        rows = () if given is None else node.meta["val"].shape[-2:-1]
        if given is not None and rows and isinstance(given.meta["val"].shape[-1], SymInt):
            shape = (*rows, given.meta["val"].shape[-1])
            with graph.inserting_before(node), contextlib.suppress(NotPlainError):
                made = _FromQuery(graph, values, sizes, shape).made(given)
                if made is not None:
                    node.replace_input_with(given, made)
        sizes.note(node)
    graph.eliminate_dead_code()


def _values(program: ExportedProgram) -> dict[str, Tensor]:
    """Parameters, buffers and constants by the names of their nodes."""
    signature = program.graph_signature
    known = {**program.state_dict, **program.constants}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    return {node: known[name] for node, name in names.items() if name in known}


def _normalised(node: fx.Node) -> fx.Node | None:
    """What a node normalises along the last axis, or adds to what it does."""
    if node.target in SOFTMAX:
        given, axis = node.args[:2]
        assert isinstance(given, fx.Node)
        return given if axis in (-1, given.meta["val"].ndim - 1) else None
    if node.target is not ATTENTION:
        return None
    bias = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    return bias if isinstance(bias, fx.Node) and bias.meta["val"].is_floating_point() else None


class _FromQuery:
    """Makes values that differ from given ones by a number for each row of the last axis."""

    def __init__(
        self, graph: fx.Graph, values: dict[str, Tensor], sizes: SizeNodes, shape: tuple[Any, ...]
    ) -> None:
        self._graph, self._values, self._sizes = graph, values, sizes
        self._rows, self._length = shape
        self._known: dict[fx.Node, fx.Node | None] = {}

    def made(self, node: Any) -> fx.Node | None:
        """The value whose keys are counted from the query; None if none was counted back."""
        if not isinstance(node, fx.Node) or _is_level(node):
            return None
        if node not in self._known:
            self._known[node] = self._from_query(node) or self._made(node)
        return self._known[node]

    def _made(self, node: fx.Node) -> fx.Node | None:
        target = node.target
        if target in (aten.add.Tensor, aten.sub.Tensor):
            made = [self.made(given) for given in node.args]
            return self._again(node, *made)
        if target in (aten.mul.Tensor, aten.div.Tensor):
            left, right = node.args
            if _is_level(right):
                return self._again(node, self.made(left))
            if target is aten.mul.Tensor and _is_level(left):
                return self._again(node, None, self.made(right))
        if target in CASTS and node.meta["val"].dtype in WIDE:
            return self._again(node, self.made(node.args[0]))
        if target in (aten.masked_fill.Scalar, aten.masked_fill.Tensor):
            return self._again(node, self.made(node.args[0])) if self._hides(node.args[2]) else None
        if target is aten.where.self:
            _, left, right = node.args
            if self._hides(right):
                return self._again(node, None, self.made(left))
            if self._hides(left):
                return self._again(node, None, None, self.made(right))
        return None

    def _from_query(self, node: fx.Node) -> fx.Node | None:
        """A term that is the same for all queries and affine in the key."""
        value = node.meta["val"]
        alike = value.ndim == 1 or _is_one(value.shape[-2])
        if not alike or not value.is_floating_point() or not self._is_counted_back(node):
            return None
        slope = self._slope(node)
        if slope is None or not statically_known_true(self._rows == self._length):
            return None
        count = self._sizes.of(self._length)
        device = {"device": value.device}
        index = self._call(node, aten.arange.default, (count,), device)
        query = self._call(node, aten.unsqueeze.default, (index, 1), {})
        apart = self._call(node, aten.sub.Tensor, (index, query), {})
        apart = self._call(node, TO_COPY, (apart,), {"dtype": value.dtype})
        return self._call(node, aten.mul.Tensor, (apart, slope), {})

    def _is_counted_back(self, node: fx.Node) -> bool:
        """Whether a term is of the last entries of something, or goes against the index."""
        seen, left = set[fx.Node](), [node]
        while left:
            one = left.pop()
            if one in seen or one.target is aten.arange.default:
                continue
            seen.add(one)
            if one.target is aten.flip.default or isinstance(one.meta.get("val"), SymInt):
                return True
            if one.target not in BEGINS:
                left += one.all_input_nodes
                continue
            begin = one.args[BEGINS[one.target]] if len(one.args) > BEGINS[one.target] else 0
            last = isinstance(begin, int) and begin < 0 and one.target not in ARANGES
            if last or isinstance(begin, fx.Node):
                return True
            left += [given for given in one.args[:1] if isinstance(given, fx.Node)]
        return False

    def _slope(self, node: Any) -> Any:
        """What a value grows by from one entry of its last axis to the next; None if it varies.

        A number, or a node of one entry along that axis.
        """
        if _is_level(node):
            return 0
        target, given = node.target, node.args[0] if node.args else None
        if target in ARANGES:
            step = node.args[2] if len(node.args) > 2 else 1
            return step if isinstance(step, int | float) else None
        if node.name in self._values:
            return self._slope_of_table(node)
        if target in (aten.add.Tensor, aten.sub.Tensor) and not node.kwargs:
            left, right = map(self._slope, node.args)
            return self._reckoned(node, target, left, right)
        if target in (aten.mul.Tensor, aten.div.Tensor):
            left, right = node.args
            if _is_level(right):
                return self._reckoned(node, target, self._slope(left), right)
            if target is aten.mul.Tensor and _is_level(left):
                return self._reckoned(node, target, self._slope(right), left)
            return None
        if target not in FOLLOWED or not isinstance(given, fx.Node):
            return None
        slope = self._slope(given)
        if slope is None:
            return None
        last = [node.meta["val"].ndim - 1]
        if target is aten.neg.default or (target is aten.flip.default and _axes(node) == last):
            return self._reckoned(node, aten.mul.Tensor, slope, -1)
        if target in CASTS:
            rounds = node.meta["val"].dtype not in {*WIDE, given.meta["val"].dtype}
            return None if rounds else self._reckoned(node, TO_COPY, slope)
        if target is aten.slice.Tensor and _axes(node) == last:
            return slope if len(node.args) < 5 or node.args[4] == 1 else None
        if target is aten.slice.Tensor and self._leaves(node, given):
            return slope
        if target is aten.unsqueeze.default and _axes(node) != last:
            return self._reckoned(node, target, slope, *_axes(node))
        if target in (aten.squeeze.dim, aten.squeeze.dims):
            rank = given.meta["val"].ndim
            axes = [axis % rank for axis in tree_leaves(node.args[1])]
            return None if rank - 1 in axes else self._reckoned(node, target, slope, node.args[1])
        if target in VIEWS and _same(node.meta["val"].shape[-1:], given.meta["val"].shape[-1:]):
            return self._reckoned(node, target, slope, [*node.args[1][:-1], 1])
        return None

    def _reckoned(self, node: fx.Node, target: Any, slope: Any, *others: Any) -> Any:
        """A slope of another: a number where it can be one."""
        if slope is None or None in others:
            return None
        nodes = [x for x in (slope, *others) if isinstance(x, fx.Node)]
        if not all(isinstance(x.meta["val"], Tensor) for x in nodes):
            return None
        if not nodes:  # the same number in another shape or dtype, or another number
            return PLAIN[target](slope, *others) if target in PLAIN else slope
        if isinstance(slope, fx.Node):
            options = {"dtype": node.meta["val"].dtype} if target is TO_COPY else {}
            return self._call(node, target, (slope, *others), options)
        if target is aten.sub.Tensor:
            minus = self._call(node, aten.neg.default, others, {})
            return self._call(node, aten.add.Tensor, (minus, slope), {})
        return None if target is aten.div.Tensor else self._call(node, target, (*others, slope), {})

    def _slope_of_table(self, table: fx.Node) -> fx.Node | None:
        """The slope of each row of a parameter, buffer or constant, if all of them have one."""
        value = self._values[table.name]
        if not _is_straight(value):
            return None
        count = value.shape[-1]
        ends = [
            self._call(table, aten.slice.Tensor, (table, -1, at, at + 1), {})
            for at in (count - 1, 0)
        ]
        rise = self._call(table, aten.sub.Tensor, tuple(ends), {})
        return self._call(table, aten.div.Tensor, (rise, count - 1), {})

    def _leaves(self, node: fx.Node, given: fx.Node) -> bool:
        """Whether a slice leaves an axis as it is: all of it, or its one entry."""
        (axis,) = _axes(node)
        was, size = given.meta["val"].shape[axis], node.meta["val"].shape[axis]
        return (_is_one(was) and _is_one(size)) or _same([was], [size])

    def _hides(self, fill: Any) -> bool:
        """Whether entries have no weight in a softmax, however far those that have are moved."""
        if isinstance(fill, int | float):
            return fill <= HIDDEN
        while isinstance(fill, fx.Node) and fill.target in COPIES:
            fill = fill.args[0]
        value = self._values.get(fill.name) if isinstance(fill, fx.Node) else None
        if value is None and isinstance(fill, fx.Node) and fill.target in NUMBERS:
            number = fill.args[NUMBERS[fill.target]]
            return isinstance(number, int | float) and number <= HIDDEN
        return value is not None and bool((value <= HIDDEN).all())

    def _again(self, node: fx.Node, *made: fx.Node | None) -> fx.Node | None:
        """A node on other arguments, where there are any."""
        if not any(made):
            return None
        args = tuple(new or old for new, old in itertools.zip_longest(made, node.args))
        return self._call(node, node.target, args, dict(node.kwargs))

    def _call(self, of: fx.Node, target: Any, args: Any, options: dict[str, Any]) -> fx.Node:
        new = self._graph.call_function(target, args, options)
        known = fx.map_arg((args, options), lambda node: node.meta["val"])
        with of.meta["val"].fake_mode:
            new.meta = {**of.meta, "val": target(*known[0], **known[1])}
        return new


COPIES = frozenset(
    [*CASTS, aten.lift_fresh_copy.default, aten.clone.default, aten.detach.default,
     aten.detach_.default]
)  # fmt: skip
NUMBERS = {aten.full.default: 1, aten.scalar_tensor.default: 0, aten.full_like.default: 1}


def _is_level(node: Any) -> bool:
    """Whether a value is the same along the last axis."""
    if not isinstance(node, fx.Node):
        return True
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return True
    return value.ndim == 0 or (isinstance(value.shape[-1], int) and value.shape[-1] == 1)


def _axes(node: fx.Node) -> list[int]:
    """The axes that a node is told, counted from the front."""
    told = node.args[1] if len(node.args) > 1 else 0
    rank = node.meta["val"].ndim
    return [axis % rank for axis in (told if isinstance(told, list | tuple) else [told])]


def _is_one(size: Any) -> bool:
    if isinstance(size, int):
        return size == 1
    bounds = size.node.shape_env.bound_sympy(size.node.expr)
    return bool(bounds.lower == bounds.upper == 1) or statically_known_true(size == 1)


def _is_straight(table: Tensor) -> bool:
    """Whether each row of a table is affine in the index, up to the rounding of its entries."""
    if table.dtype not in {*WIDE, torch.int32, torch.int64} or table.ndim == 0:
        return False
    exact = table.double()
    count = exact.shape[-1]
    if count < 2:
        return False
    slope = (exact[..., -1:] - exact[..., :1]) / (count - 1)
    line = exact[..., :1] + slope * torch.arange(count, dtype=torch.float64)
    step = torch.finfo(table.dtype).eps if table.dtype.is_floating_point else 0.0
    limit = ROUNDED * step * exact.abs().amax(-1, keepdim=True)
    return bool(((exact - line).abs() <= limit).all())


def _same(left: Any, right: Any) -> bool:
    return len(left) == len(right) and all(
        a is b or statically_known_true(a == b) for a, b in zip(left, right, strict=True)
    )
