"""What is read where it was written just before is what was written.

A model may keep a cache of its own, as published code of Llama does: ``cache[:b, p : p + n] = k``
and then ``k = cache[:b, : p + n]``.  From the first token on, p = 0, both are the same place, and
k is k: nothing of an earlier call is read.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from .mutations import origin, writes
from .program_nodes import WHOLE, argument, shape_of, term

aten = torch.ops.aten
COPIES = frozenset(
    (aten.to.device, aten.to.dtype, aten.to.dtype_layout, aten.to.other, aten.alias.default)
)
"""What gives the very tensor that it takes, where neither type nor place change."""

Region = tuple[fx.Node, tuple[Any, ...]]


def forward_stored(program: ExportedProgram) -> None:
    """Let `program` take what it wrote to a place instead of reading that place, in place."""
    nodes = list(program.graph.nodes)
    written = [origin(value) for node in nodes for value in writes(node)]
    stored: dict[fx.Node, tuple[tuple[Any, ...], fx.Node]] = {}
    for node in nodes:
        for root in map(origin, writes(node)):
            written.remove(root)
            stored = {
                base: (places, given)
                for base, (places, given) in stored.items()
                if root not in (base, origin(given))
            }
        if node.target is aten.copy_.default:
            place, given = node.args[:2]
            found = _region(place)
            if found is not None and _alike(place, given):
                stored[found[0]] = found[1], given
            continue
        found = _region(node)
        if found is None or found[0] is node or found[0] not in stored:
            continue
        places, given = stored[found[0]]
        if places == found[1] and not {found[0], origin(given)} & set(written):
            node.replace_all_uses_with(given)


def _region(node: Any) -> Region | None:
    """What `node` is a piece of, and which; None where it is not known to be one."""
    steps: list[Any] = []
    while isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor):
        if node.target in COPIES and _alike(node, node.args[0]):
            node = node.args[0]
        elif node.target is aten.slice.Tensor:
            start, end = argument(node, 2, "start") or 0, argument(node, 3, "end", WHOLE)
            axis = argument(node, 1, "dim", 0) % len(shape_of(node))
            if argument(node, 4, "step", 1) != 1:
                return None
            steps.append((axis, str(term(start)), str(term(WHOLE if end is None else end))))
            node = node.args[0]
        elif node.op in ("placeholder", "get_attr"):
            return node, tuple(steps)
        else:
            return None
    return None


def _alike(one: Any, other: Any) -> bool:
    """Whether two nodes give tensors of the same sizes, type and place."""
    values = [each.meta.get("val") if isinstance(each, fx.Node) else None for each in (one, other)]
    a, b = values
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    same = a.dtype == b.dtype and a.device == b.device
    return same and [*map(term, a.shape)] == [*map(term, b.shape)]
