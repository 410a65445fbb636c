"""Writes in place as new values, node by node, without tracing a program once more.

A value that is written is followed by a new one; where it is a view, what it is a view of follows
as well, with the new entries in its place, and other views of that are taken anew once they are
read.  What is a view is told by the storage that the capture noted, since `reshape` and
`contiguous` are views only where they can be.
"""

import contextlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch.export import ExportedProgram

from .mutations import writes

aten = torch.ops.aten

RENAMED = {
    "__iand__": "bitwise_and",
    "__ior__": "bitwise_or",
    "__ixor__": "bitwise_xor",
    "zero_": "zeros_like",
}
LAID: dict[Any, OpOverload] = {aten.view.default: aten.reshape.default}
"""What a view is where values may lie otherwise in memory."""


def writes_in_place(node: fx.Node) -> bool:
    """Whether a node writes to one of its arguments."""
    return any(True for _ in writes(node))


def write_out(program: ExportedProgram) -> None:
    """Take the writes in place out of `program`, if there is a plain way for all of them.

    They are left to PyTorch if there is one to an input, by a view without a way back, or by an
    operation without a form that gives what it writes.
    """
    graph = program.graph_module.graph
    nodes = list(graph.nodes)
    writing = [node for node in nodes if writes_in_place(node)]
    views = _Views(nodes)
    if not writing or not all(views.may_be_written(node) for node in writing):
        return
    written = _WrittenOut(graph, views)
    for node in nodes:
        written.take(node)
    for node in reversed(writing):
        graph.erase_node(node)


class _Views:
    """Which nodes of a program are views of others: of their first argument."""

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        self.of: dict[fx.Node, fx.Node] = {}
        self.functions: dict[fx.Node, OpOverload] = {}  # that give what nodes write
        holders: dict[int | None, fx.Node] = {}
        self._shared: set[fx.Node] = set()  # whose storage others have by another way
        for node in nodes:
            if (given := self._viewed(node)) is not None:
                self.of[node] = given
                if node.target is aten.as_strided.default:  # which says more than a new value has
                    self._shared.add(self.root(node))
                continue
            value = node.meta.get("val")
            first = holders.setdefault(_storage(value), node) if isinstance(value, Tensor) else node
            if first is not node:
                self._shared.add(first)

    def _viewed(self, node: fx.Node) -> fx.Node | None:
        given = node.args[0] if node.op == "call_function" and node.args else None
        if not isinstance(given, fx.Node) or writes_in_place(node):
            return given if isinstance(given, fx.Node) else None
        if node.target is operator.getitem and given not in self.of:
            return None  # one of the results of an operation
        storage = _storage(node.meta.get("val"))
        same = storage is not None and storage == _storage(given.meta.get("val"))
        return given if same else None

    def root(self, node: fx.Node) -> fx.Node:
        """What is no view, of which `node` is one."""
        while node in self.of:
            node = self.of[node]
        return node

    def may_be_written(self, node: fx.Node) -> bool:
        """Whether a write can be taken out."""
        place: Any = node.args[0]
        op = functional(node)
        if op is None or not isinstance(place.meta.get("val"), Tensor):
            return False
        self.functions[node] = op
        while place in self.of:
            if not writes_in_place(place) and place.target not in BACK:
                return False
            place = self.of[place]
        return place.op == "call_function" and place not in self._shared


def _storage(value: Any) -> int | None:
    """Which storage a value has, or the parts of one that a list holds."""
    if isinstance(value, list | tuple):
        return _storage(value[0]) if value else None
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None  # noqa: SLF001


def functional(node: fx.Node) -> OpOverload | None:
    """The operation that gives what `node` writes to its first argument; None without one."""
    op: Any = node.target
    if torch.Tag.inplace_view in op.tags:  # as `t_` and `unsqueeze_`, which write no entry
        return None
    schema = op._schema  # noqa: SLF001
    written = [a.alias_info is not None and a.alias_info.is_write for a in schema.arguments]
    name = schema.name.removeprefix("aten::")
    if written[:1] != [True] or sum(written) != 1 or len(schema.returns) != 1:
        return None
    packet = getattr(aten, RENAMED.get(name, name.removesuffix("_")), None)
    overload = "default" if name == "zero_" else schema.overload_name or "default"
    found = getattr(packet, overload, None)
    if not isinstance(found, OpOverload) or name[-1] != "_":
        return None
    return found if name == "copy_" or _gives(found, node) else None


def _gives(op: OpOverload, node: fx.Node) -> bool:
    """Whether `op` gives what `node` writes to: `gt_` writes numbers, where `gt` gives flags."""
    place: Any = node.args[0]
    wanted = place.meta["val"]
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: each.meta.get("val"))
    try:
        with detect_fake_mode([wanted]) or contextlib.nullcontext(), enable_python_dispatcher():
            value = op(*args[:1] if op is aten.zeros_like.default else args, **kwargs)
    except Exception:  # noqa: BLE001  whatever it raises, it is not the same
        return False
    return value.dtype == wanted.dtype and _alike(value, wanted)


def _alike(a: Tensor, b: Tensor) -> bool:
    return [*map(str, a.shape)] == [*map(str, b.shape)]


class _WrittenOut:
    """A program whose values are followed by new ones."""

    def __init__(self, graph: fx.Graph, views: _Views) -> None:
        self._graph, self._views = graph, views
        self._writes: dict[fx.Node, int] = {}  # to what is no view
        self._now: dict[fx.Node, tuple[int, fx.Node]] = {}  # after how many of them; the value

    def take(self, node: fx.Node) -> None:
        """Let `node` read what its arguments are now, and what it writes be followed."""
        with self._graph.inserting_before(node):
            if writes_in_place(node):
                self._write(node)
                return
            given = node.args
            node.args, node.kwargs = self.now(node.args), self.now(node.kwargs)
            if node.args != given:
                node.target = LAID.get(node.target, node.target)
        self._now[node] = (self._count(node), node)

    def call(self, op: Any, like: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
        """A node that gives what `like` has the shape and dtype of."""
        made = self._graph.call_function(op, args, kwargs)
        made.meta = dict(like.meta)
        return made

    def now(self, given: Any) -> Any:
        """Arguments as they are after the writes so far."""
        return fx.node.map_arg(given, self.current)

    def _count(self, node: fx.Node) -> int:
        return self._writes.get(self._views.root(node), 0)

    def current(self, node: fx.Node) -> fx.Node:
        """What `node` is after the writes so far."""
        while writes_in_place(node):  # it is what it wrote to
            node = self._views.of[node]
        after, value = self._now[node]
        if after == self._count(node):
            return value
        rest, named = self.now(node.args[1:]), self.now(node.kwargs)
        op = LAID.get(node.target, node.target)
        value = self.call(op, node, self.current(self._views.of[node]), *rest, **named)
        self._now[node] = (self._count(node), value)
        return value

    def _write(self, node: fx.Node) -> None:
        place: Any = node.args[0]
        value = self._value(node, place)
        after = self._count(place) + 1
        now = {place: value}
        while place in self._views.of:
            before = self._views.of[place]
            if not writes_in_place(place):
                value = BACK[place.target](self, place, before, self.current(before), value)
            now[before] = value
            place = before
        self._writes[place] = after
        self._now |= {each: (after, value) for each, value in now.items()}

    def _value(self, node: fx.Node, place: fx.Node) -> fx.Node:
        """What `node` gives, as a new value."""
        op, name = self._views.functions[node], node.target._schema.name  # type: ignore[union-attr]  # noqa: SLF001
        args, kwargs = self.now(node.args), self.now(node.kwargs)
        if name == "aten::zero_":
            return self.call(op, place, args[0])
        if name != "aten::copy_":
            return self.call(op, place, *args, **kwargs)
        given: fx.Node = args[1]
        wanted = place.meta["val"]
        value = given.meta["val"]
        if value.dtype != wanted.dtype:
            given = self.call(aten._to_copy.default, given, given, dtype=wanted.dtype)  # noqa: SLF001
            given.meta["val"] = value.to(wanted.dtype)
        if _alike(value, wanted):
            return given
        return self.call(aten.expand_as.default, place, given, args[0])


Back = Callable[[_WrittenOut, fx.Node, fx.Node, fx.Node, fx.Node], fx.Node]
"""What gives the new value of what a view is of: the view, that, its value, the view's new one."""


def _scattered(op: OpOverload) -> Back:
    def back(
        written: _WrittenOut, view: fx.Node, of: fx.Node, before: fx.Node, value: fx.Node
    ) -> fx.Node:
        rest, named = written.now(view.args[1:]), written.now(view.kwargs)
        return written.call(op, of, before, value, *rest, **named)

    return back


def _as_before(
    written: _WrittenOut, _: fx.Node, of: fx.Node, before: fx.Node, value: fx.Node
) -> Any:
    return written.call(aten.reshape_as.default, of, value, before)


def _turned(written: _WrittenOut, view: fx.Node, of: fx.Node, _: fx.Node, value: fx.Node) -> Any:
    return written.call(view.target, of, value, *view.args[1:])


def _permuted(written: _WrittenOut, view: fx.Node, of: fx.Node, _: fx.Node, value: fx.Node) -> Any:
    given: Any = view.args[1]
    order = [axis % len(given) for axis in given]
    return written.call(aten.permute.default, of, value, sorted(order, key=order.index))


def _squeezed(written: _WrittenOut, view: fx.Node, of: fx.Node, _: fx.Node, value: fx.Node) -> Any:
    return written.call(aten.squeeze.dim, of, value, view.args[1])


def _unsqueezed(
    written: _WrittenOut, view: fx.Node, of: fx.Node, _: fx.Node, value: fx.Node
) -> Any:
    if view.meta["val"].ndim == of.meta["val"].ndim:
        return value
    return written.call(aten.unsqueeze.default, of, value, view.args[1])


def _same(_: _WrittenOut, __: fx.Node, ___: fx.Node, ____: fx.Node, value: fx.Node) -> Any:
    return value


BACK: dict[Any, Back] = {
    aten.select.int: _scattered(aten.select_scatter.default),
    aten.slice.Tensor: _scattered(aten.slice_scatter.default),
    aten.diagonal.default: _scattered(aten.diagonal_scatter.default),
    aten.unsqueeze.default: _squeezed,
    aten.squeeze.dim: _unsqueezed,
    aten.permute.default: _permuted,
    **dict.fromkeys(
        [aten.transpose.int, aten.swapaxes.default, aten.t.default, aten.mT.default], _turned
    ),
    **dict.fromkeys(
        [aten.view.default, aten._unsafe_view.default, aten.reshape.default,  # noqa: SLF001
         aten.flatten.using_ints, aten.unflatten.int, aten.view_as.default],
        _as_before,
    ),
    **dict.fromkeys(
        [aten.alias.default, aten.detach.default, aten.detach_.default, aten.contiguous.default,
         aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.type_as.default,
         aten.dropout.default],
        _same,
    ),
}  # fmt: skip
