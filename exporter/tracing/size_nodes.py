"""Nodes that give sizes, for what is written into a program that was captured."""

import contextlib
import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import SymInt, Tensor, fx

aten = torch.ops.aten


class NotPlainError(Exception):
    """A node that the shapes noted do not say how to write, as where nothing gives a size."""


class SizeNodes:
    """Nodes that give sizes, by the expressions that PyTorch has for them."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._nodes: dict[Any, int | fx.Node] = {}
        self._axes: dict[Any, tuple[fx.Node, int]] = {}

    def note(self, node: fx.Node) -> None:
        """Remember what sizes a node gives or has."""
        value = node.meta.get("val")
        if isinstance(value, SymInt):
            self._nodes.setdefault(value.node.expr, node)
        if isinstance(value, Tensor):
            shape: tuple[Any, ...] = tuple(value.shape)
            for axis, size in enumerate(shape):
                if isinstance(size, SymInt):
                    self._axes.setdefault(size.node.expr, (node, axis))

    def of(self, size: Any) -> int | fx.Node:
        """A size, a number or a SymInt, as an argument of a node that is inserted now."""
        return self._expressed(size.node.expr) if isinstance(size, SymInt) else int(size)

    def _expressed(self, expression: Any) -> int | fx.Node:
        if expression.is_Integer:
            return int(expression)
        if expression in self._nodes:
            return self._nodes[expression]
        if expression.is_Mul or expression.is_Add:  # of sizes of inputs, not of what is computed
            function = operator.mul if expression.is_Mul else operator.add
            with contextlib.suppress(NotPlainError):
                parts = [self._expressed(each) for each in expression.args]
                found = functools.reduce(functools.partial(self._combined, function), parts)
                self._nodes[expression] = found
                return found
        if expression not in self._axes:
            raise NotPlainError
        holder, axis = self._axes[expression]
        size = self._graph.call_function(aten.sym_size.int, (holder, axis))
        size.meta = {**holder.meta, "val": holder.meta["val"].shape[axis]}
        self._nodes[expression] = size
        return size

    def _combined(
        self, function: Callable[..., Any], left: int | fx.Node, right: int | fx.Node
    ) -> fx.Node:
        found = self._graph.call_function(function, (left, right))
        one = next(node for node in (left, right) if isinstance(node, fx.Node))
        values = (x.meta["val"] if isinstance(x, fx.Node) else x for x in (left, right))
        found.meta = {**one.meta, "val": function(*values)}
        return found
