"""Values of one iteration, and the operators on them where some depend on the position alone.

Such a value has no batch in the source, but each row of a step may stand at a position of its own:
it is computed for each row (`Inner.own` is its shape without the batch), and meets the data with
its axes aligned.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import SymInt, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from .loop_streams import PartedError
from .pairing import named
from .terms import Term, aten

_ROWS = (aten.linear.default, aten._to_copy.default)  # noqa: SLF001
_AXIS = (aten.unsqueeze.default, aten.squeeze.dim, aten.select.int)


class Inner(NamedTuple):
    """A node of the body; `own` is the shape of its term where that has no batch and it has."""

    node: fx.Node
    own: tuple[int, ...] | None = None


def is_batched(term: Term) -> bool:
    """Whether a value has the batch among its axes."""
    return any(isinstance(dim, SymInt) for dim in term.shape)


def batch_axis(term: Term) -> int:
    """The axis of the batch, 0 where there is none."""
    return next((axis for axis, dim in enumerate(term.shape) if isinstance(dim, SymInt)), 0)


def own_shape(term: Term) -> tuple[int, ...] | None:
    """The shape of a term without a batch, None with one."""
    return None if is_batched(term) else tuple(int(dim) for dim in term.shape)


def apply(graph: fx.Graph, term: Term, leaves: Sequence[Any]) -> Inner:
    """The operator of `term` on `leaves`, which are values, nodes of sizes and constants."""
    if not callable(term.op):
        raise PartedError(f"reads all tokens of {term.leaves[0]!r} at one of its first iterations")
    if any(isinstance(leaf, Inner) and leaf.own is not None for leaf in leaves):
        return _apply_lifted(graph, term, leaves)
    return Inner(_call(graph, term, term.op, leaves))


def _call(graph: fx.Graph, term: Term, op: Any, leaves: Sequence[Any]) -> fx.Node:
    plain = [leaf.node if isinstance(leaf, Inner) else leaf for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(plain, term.spec)
    return graph.call_function(op, tuple(args), kwargs)


def _apply_lifted(graph: fx.Graph, term: Term, leaves: Sequence[Any]) -> Inner:
    op, own = term.op, own_shape(term)
    if op is aten.full.default and not batch_axis(term):
        sizes = [int(dim) for dim in term.shape if isinstance(dim, int)]
        number = graph.call_function(aten.view.default, (leaves[-2].node, [-1, *[1] * len(sizes)]))
        return Inner(graph.call_function(aten.expand.default, (number, [-1, *sizes])), own)
    if isinstance(op, OpOverload) and torch.Tag.pointwise in op.tags:
        given = [aligned(graph, x, term) if isinstance(x, Inner) else x for x in leaves]
        numbers = any(
            isinstance(x, Inner) and not isinstance(leaf, Term)
            for x, leaf in zip(leaves, term.leaves, strict=True)
        )
        # A number that became a tensor asks for another overload.
        return Inner(_call(graph, term, op.overloadpacket if numbers else op, given), own)
    if op in _ROWS:
        return Inner(_call(graph, term, op, leaves), own)
    if op is aten.expand.default and own is None:
        return Inner(_call(graph, term, op, [aligned(graph, leaves[0], term), *leaves[1:]]))
    if op in _AXIS and own is not None:
        rank = len(term.leaves[0].shape) + (op is aten.unsqueeze.default)
        return Inner(_call(graph, term, op, [leaves[0], leaves[1] % rank + 1, *leaves[2:]]), own)
    raise PartedError(f"computes with its position in {named(term)}")


def aligned(graph: fx.Graph, value: Inner, term: Term) -> fx.Node:
    """`value` so that it meets others in `term`, axis for axis, after the batch."""
    if value.own is None:
        return value.node
    if batch_axis(term):
        raise PartedError(f"computes with its position in {named(term)}, whose batch is not first")
    own, rank = value.own, len(term.shape) - is_batched(term)
    while len(own) > rank and own[0] == 1:
        own = own[1:]
    if len(own) == rank == len(value.own):
        return value.node
    shape = [-1, *[1] * (rank - len(own)), *own]
    return graph.call_function(aten.view.default, (value.node, shape))
