"""``x[mask] = number`` -> ``masked_fill``, which chooses entry by entry.

Written as an index it finds the places of the mask first, as many as there are, and scatters into
them, which no mask of attention can be read from.
"""

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

ATEN = torch.ops.aten
FILLS = {
    ATEN.index_put_.default: ATEN.masked_fill_.Tensor,
    ATEN.index_put.default: ATEN.masked_fill.Tensor,
}


def settle_masked_writes(program: ExportedProgram) -> None:
    """Rewrite the writes of one number wherever a mask of the same shape is true."""
    for node in program.graph.nodes:
        if node.target in FILLS and not node.kwargs and len(node.args) == 3:
            target, places, value = node.args
            if len(places) == 1 and _fits(target, places[0], value):
                node.target, node.args = FILLS[node.target], (target, places[0], value)


def _fits(target: fx.Node, mask: object, value: fx.Node) -> bool:
    if not isinstance(mask, fx.Node):
        return False
    x, chosen, number = (node.meta.get("val") for node in (target, mask, value))
    if not (isinstance(x, Tensor) and isinstance(chosen, Tensor) and isinstance(number, Tensor)):
        return False
    same = [*map(str, chosen.shape)] == [*map(str, x.shape)]  # of sizes that data tells as well
    return same and number.dtype == x.dtype and chosen.dtype == torch.bool and number.ndim == 0
