"""Operators of PyTorch that keep rows apart: each row of a result comes from that row alone."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .program_nodes import argument, shape_of, term

ATEN = torch.ops.aten
Rule = Callable[[Any, int], bool]


def _behind(count: Callable[[Any], int]) -> Rule:
    """Whether an operator on so many of the last axes leaves rows apart."""
    return lambda node, axis: axis < len(shape_of(node.args[0])) - count(node)


def _beside(index: int, name: str, default: Any = None) -> Rule:
    """Whether an operator over an axis, or several, is over others than that of rows."""

    def rule(node: Any, axis: int) -> bool:
        over = argument(node, index, name, default)
        rank = len(shape_of(node.args[0]))
        axes = over if isinstance(over, list | tuple) else [over]
        known = bool(axes) and None not in axes  # over none of them is over all
        return known and axis not in [each % rank for each in axes]

    return rule


def _reshaped(node: Any, axis: int) -> bool:
    """Whether rows stay one axis, with as many entries before it."""
    before, after = shape_of(node.args[0]), shape_of(node)
    count = term(before[axis])
    places = [at for at, size in enumerate(after) if term(size) == count]
    numbers = all(not isinstance(each, fx.Node) for each in node.args[1])
    if len(places) != 1 or not numbers:
        return False
    front = (*before[:axis], *after[: places[0]])
    known = all(isinstance(size, int) for size in front)
    return known and math.prod(before[:axis]) == math.prod(after[: places[0]])


def _always(_: Any, __: int) -> bool:
    return True


def _product(node: Any, axis: int) -> bool:
    """Whether the left of a product of two matrices has rows, and the right is one of weights."""
    left, right = node.args[-2:] if node.target is ATEN.addmm.default else node.args[:2]
    fixed = all(isinstance(size, int) for size in shape_of(right))
    return fixed and len(shape_of(right)) == 2 and axis < len(shape_of(left)) - 1


BEHIND: dict[Any, Callable[[Any], int]] = {
    ATEN.linear.default: lambda _: 1,
    ATEN.layer_norm.default: lambda node: len(node.args[1]),
    ATEN.rms_norm.default: lambda node: len(node.args[1]),
}
"""How many of the last axes an operator computes with; those before them stay apart."""

RULES: dict[Any, Rule] = {
    **{op: _behind(count) for op, count in BEHIND.items()},
    ATEN.softmax.int: _beside(1, "dim"),
    ATEN.sum.dim_IntList: _beside(1, "dim"),
    ATEN.mean.dim: _beside(1, "dim"),
    ATEN.select.int: _beside(1, "dim", 0),
    ATEN.slice.Tensor: _beside(1, "dim", 0),
    ATEN.squeeze.dim: _beside(1, "dim"),
    ATEN.chunk.default: _beside(2, "dim", 0),
    ATEN.split.Tensor: _beside(2, "dim", 0),
    ATEN.view.default: _reshaped,
    ATEN.reshape.default: _reshaped,
    ATEN.unsqueeze.default: _always,
    ATEN.mm.default: _product,
    ATEN.matmul.default: _product,
    ATEN.addmm.default: _product,
    operator.getitem: _always,
}
"""Operators that compute with more than single entries, and when they keep rows apart."""

ALONE = (
    *(ATEN.to.dtype, ATEN._to_copy.default, ATEN.clone.default, ATEN.contiguous.default),  # noqa: SLF001
    *(ATEN.alias.default, ATEN.detach.default, ATEN.dropout.default, ATEN.type_as.default),
)


def keeps_rows(op: Any) -> Rule | None:
    """When a call of `op` keeps rows of an axis apart; None if that is not known."""
    tags = getattr(op, "tags", ())
    if op in ALONE or torch.Tag.pointwise in tags:
        return None if torch.Tag.nondeterministic_seeded in tags else _always
    return RULES.get(op)
