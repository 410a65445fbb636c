"""The converter takes the two bounds of a clamp only where both are of one kind of number.

``clamp(min=1, max=5e4)`` holds an integer and a float; both become what the result is made of.
A bound that follows from sizes, as ``clamp(0, x.shape[1] - 1)``, is no number here, and stays.
"""

from torch import ops as torch_ops
from torch.export import ExportedProgram

CLAMP = torch_ops.aten.clamp.default


def settle_clamps(program: ExportedProgram) -> None:
    """Give the bounds of each clamp in `program` the kind of number that it gives."""
    for node in program.graph.nodes:
        bounds = [x for x in (*node.args[1:], *node.kwargs.values()) if x is not None]
        numbers = all(isinstance(bound, int | float) for bound in bounds)
        if node.target is CLAMP and numbers and len({type(bound) for bound in bounds}) > 1:
            kind = float if node.meta["val"].dtype.is_floating_point else int
            given = {**dict(zip(("min", "max"), node.args[1:], strict=False)), **node.kwargs}
            node.args = (node.args[0], *(kind(given[name]) for name in ("min", "max")))
            node.kwargs = {}
