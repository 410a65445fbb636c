"""Work of what ONNX Runtime ran, from the types and sizes that its profiler tells of each run.

The bundle's graph tells most of it; not that of nodes which the engine made of others, of a body
that runs once for each token, or behind a size that depends on data.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from intaglio.runtime.onnx_graph import Node, OnnxGraph, Value
from intaglio.runtime.work import NodeWork, Works

Event = Mapping[str, Any]

# Bits of an element, by the name of its type in the profile.
_BITS = {
    **dict.fromkeys(("bool", "int8", "uint8"), 8),
    **dict.fromkeys(("bfloat16", "float16", "int16", "uint16"), 16),
    **dict.fromkeys(("float", "int32", "uint32"), 32),
    **dict.fromkeys(("double", "int64", "uint64"), 64),
    **dict.fromkeys(("Int4x2", "UInt4x2"), 4),
    **dict.fromkeys(("Int2x4", "UInt2x4"), 2),
}


class EventWorks:
    """Work by event; the same node at the same sizes is computed once."""

    def __init__(self, graphs: Iterable[OnnxGraph]) -> None:
        """Know the nodes of graphs, the engine's own before the bundle's."""
        self._nodes = {
            (node.name, node.op.rpartition("::")[2]): node
            for graph in reversed([*graphs])
            for node in graph.nodes
        }
        self._found: dict[str, NodeWork | None] = {}

    def of(self, name: str, op: str, arguments: Event) -> NodeWork | None:
        """Work of one run of a node; None where its operator or its types are not known."""
        takes, gives = (arguments.get(f"{side}_type_shape") for side in ("input", "output"))
        if takes is None or gives is None:
            return None
        key = f"{name} {op} {takes} {gives}"
        if key not in self._found:
            self._found[key] = self._work(self._nodes.get((name, op)), op, takes, gives)
        return self._found[key]

    def _work(
        self, known: Node | None, op: str, takes: Sequence[Any], gives: Sequence[Any]
    ) -> NodeWork | None:
        names = [f"input {place}" for place in range(len(takes))]
        results = [f"output {place}" for place in range(len(gives))]
        node = Node(
            name="run",
            op=op if known is None else known.op,
            module="",
            inputs=_placed(names, known.inputs if known else ()),
            outputs=_placed(results, known.outputs if known else ()),
            integers=known.integers if known else {},
            lists=known.lists if known else {},
            texts=known.texts if known else {},
        )
        values = dict(zip([*names, *results], map(_value, (*takes, *gives)), strict=True))
        if None in values.values():
            return None
        made = {name: value for name, value in values.items() if value is not None}
        return Works(OnnxGraph((node,), {}, made, frozenset(results)), {}).of(["run"])


def _placed(told: Sequence[str], places: Sequence[str]) -> tuple[str, ...]:
    """What was told, with gaps where the node leaves an argument out, which is not told."""
    given = [bool(place) for place in places]
    if sum(given) != len(told):
        return tuple(told)
    rest = iter(told)
    return tuple(next(rest) if there else "" for there in given)


def _value(told: Mapping[str, Sequence[int]]) -> Value | None:
    """``{"float": [1, 8, 64]}``."""
    ((kind, shape),) = told.items()
    return Value(_BITS[kind], tuple(shape)) if kind in _BITS else None
