"""What a pass did to the nodes of a graph, module by module.

A node is known by the name of its first output, since a pass keeps the name of a value only while
its meaning stays: the same name made by another operator is a node retyped, a name that is gone a
node removed, a new one a node added.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import onnx_ir as ir

from .graph import module_of


class Made(NamedTuple):
    """Who makes a value: the module it belongs to and the operator, with its domain."""

    module: str
    op: str


Makers = Mapping[str, Made]


def makers(model: ir.Model) -> Makers:
    """The maker of each node's first output by its name, nodes of subgraphs included."""
    return {
        node.outputs[0].name or "": Made(module_of(node), _op(node))
        for node in model.graph.all_nodes()
        if node.outputs
    }


def changes(before: Makers, after: Makers) -> list[dict[str, Any]]:
    """What differs, as plain JSON values: modules changed alike stand in one entry.

    Each entry has `modules`, paths with "" for what belongs to none, and of `added`, `removed` and
    `retyped` those that are not empty: counts of nodes in each of the modules by operator,
    ``old -> new`` for retyped ones.
    """
    counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for name, (module, op) in before.items():
        if name not in after:
            counts[module]["removed"][op] += 1
    for name, (module, op) in after.items():
        if name not in before:
            counts[module]["added"][op] += 1
        elif before[name].op != op:
            counts[module]["retyped"][f"{before[name].op} -> {op}"] += 1
    alike: dict[str, dict[str, Any]] = {}
    for module, kinds in counts.items():
        did = {kind: dict(sorted(kinds[kind].items())) for kind in sorted(kinds)}
        alike.setdefault(repr(did), {"modules": [], **did})["modules"].append(module)
    return list(alike.values())


def _op(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type
