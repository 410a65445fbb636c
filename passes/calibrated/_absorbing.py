"""A change of basis of what a projection yields, put into its weight, its bias, and its readers."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from intaglio.graph_keys import FOLDED
from intaglio.passes.analysis.projections import Projection, uses
from intaglio.passes.graph import producer

from ._interaction import Basis
from ._junctions import Junction
from ._narrow import Ledger, narrow, put_vector, put_weight, vector_of, weight_of


@dataclass(frozen=True, kw_only=True)
class Before:
    """The projection that yields the value of a junction, and the bias that is added to it."""

    projection: Projection
    bias: ir.Value | None


def before(junction: Junction, by_output: Mapping[ir.Value, Projection]) -> Before | None:
    """What the basis of a junction can go into; None where something else reads it on the way."""
    value: ir.Value | None = junction.x
    bias: ir.Value | None = None
    added = producer(value, "Add")
    if added is not None:
        a, b = added.inputs
        value, bias = (a, b) if a in by_output else (b, a)
    if value is None or value not in by_output or not junction.alone:
        return None
    projection = by_output[value]
    if added is not None and (projection.bias is not None or len(value.uses()) != 1):
        return None
    bias = projection.bias if bias is None else bias
    held = bias is None or (
        bias.is_initializer() and len(bias.uses()) == 1 and FOLDED not in bias.metadata_props
    )
    vector = vector_of(bias)
    fits = bias is None or (vector is not None and vector.shape == (projection.outputs,))
    if not held or not fits or value.is_graph_output() or uses(projection.weight) != 1:
        return None
    return Before(projection=projection, bias=bias)


def absorb(junction: Junction, earlier: Before, basis: Basis, kept: int, ledger: Ledger) -> None:
    """Let the earlier projection yield `kept` directions, and every reader read these."""
    turn, places = basis.C[:, :kept], list(range(kept))
    weight = turn.T @ weight_of(earlier.projection)
    put_weight(earlier.projection, weight, ledger, rows=places)
    vector = vector_of(earlier.bias)
    if vector is not None and earlier.bias is not None:
        put_vector(earlier.bias, vector @ turn, ledger, places)
    narrow(junction.x, kept)
    for reader in junction.readers:
        back = weight_of(reader) @ basis.inverse[:kept].T
        put_weight(reader, back, ledger, columns=places)
