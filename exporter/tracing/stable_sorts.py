"""``sort(stable=True)`` -> ``sort``: ONNX puts equal entries in the order of their places.

The converter knows the second alone, and writes it as TopK, whose ties go to the lower index by
its definition, from the largest down as well.
"""

import torch
from torch.export import ExportedProgram

ATEN = torch.ops.aten


def settle_stable_sorts(program: ExportedProgram) -> None:
    """Rewrite what sorts stably, whether it is asked to or not."""
    for node in program.graph.nodes:
        if node.target is ATEN.sort.stable:
            given = {n: node.kwargs[n] for n in ("dim", "descending") if n in node.kwargs}
            node.target, node.kwargs = ATEN.sort.default, given
