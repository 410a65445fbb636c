"""Sums over the tokens between two, written as a cumulative sum over pairs -> a difference of sums.

    CumSum_i(a[i] for i > j, else 0)[i, j]  ->  G[i] - G[j] for i >= j, else 0,   G = CumSum(a)

So Mamba-2 writes the exponents of its decays, in a stable way for sums of many (Dao and Gu 2024,
arXiv:2405.21060, listing 1): "segsum".  Both are the same numbers, and the second has a step.
"""

import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.analysis.bounding import evaluate
from intaglio.passes.analysis.bounds import LONGEST, Region, ahead, behind
from intaglio.passes.analysis.mask import context_limit
from intaglio.passes.analysis.pair_reader import PairReader
from intaglio.passes.analysis.pairs import Axes, PairTerm
from intaglio.passes.graph import (
    Emitter,
    attribute,
    constant,
    dims,
    input_of,
    integers,
    replace_uses,
)
from intaglio.state import TIME


def expand_segment_sums(graph: ir.Graph) -> list[ir.Node]:
    """Rewrite each of them in place; the nodes that were rewritten."""
    found = []
    for node in list(graph):
        source = _summed(node, graph) if node.op_type == "CumSum" and not node.domain else None
        if source is not None:
            replace_uses(node.outputs[0], _difference(Emitter(node), node, source))
            graph.remove(node, safe=True)
            found.append(node)
    return found


def _summed(node: ir.Node, graph: ir.Graph) -> ir.Value | None:
    """a, of [..., time, 1], where `node` sums it over the tokens after each."""
    shape, axis = dims(node.inputs[0]) or (), integers(input_of(node, 1))
    pairs = shape[-2:] == (TIME, TIME) and axis is not None
    other = attribute(node, "exclusive", 0) or attribute(node, "reverse", 0)
    if not pairs or axis is None or axis[0] % len(shape) != len(shape) - 2 or other:
        return None
    given = node.inputs[0]
    inner = None if given is None else given.producer()
    if inner is None or inner.domain or inner.op_type not in ("Where", "Mul"):
        return None
    if inner.op_type == "Where":
        condition, *branches = inner.inputs
        zeros = [(array := constant(one)) is not None and not array.any() for one in branches]
        if zeros == [False, True] and _selects(condition, graph, later=True):
            return _of_one_token(branches[0])
        if zeros == [True, False] and _selects(condition, graph, later=False):
            return _of_one_token(branches[1])
        return None
    for one, mask in (inner.inputs, inner.inputs[::-1]):
        source = _of_one_token(one)
        if source is not None and _selects(mask, graph, later=True):
            return source
    return None


def _selects(mask: ir.Value | None, graph: ir.Graph, *, later: bool) -> bool:
    """Whether a mask is 1 where i > j and 0 elsewhere; or, without `later`, the other way round."""
    rank = len(dims(mask) or ())
    if mask is None or rank < 2 or (dims(mask) or ())[-2:] != (TIME, TIME):
        return False
    try:
        term = PairReader(graph).read(mask, Axes(rank - 2, rank - 1))
    except PassError:
        return False
    tokens = context_limit(term) or LONGEST
    rest = [behind(0, 0, tokens), ahead(tokens)]
    inside = _always(term, behind(1, tokens, tokens), 1 if later else 0)
    return inside and all(_always(term, region, 0 if later else 1) for region in rest)


def _always(term: PairTerm, region: Region, number: int) -> bool:
    found = evaluate(term, region)
    return bool((found.low == number).all() and (found.high == number).all())


def _of_one_token(value: ir.Value | None) -> ir.Value | None:
    """What is repeated over the keys, of [..., time, 1]."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in ("Expand", "Tile") and not node.domain:
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return value if (dims(value) or ())[-2:] == (TIME, 1) else None


def _difference(emit: Emitter, node: ir.Node, source: ir.Value) -> ir.Value:
    shape, wide = dims(source) or (), dims(node.outputs[0])
    rank = len(shape)
    summed = emit("CumSum", [source, emit.constant(rank - 2)], source.dtype, shape)
    perm = [*range(rank - 2), rank - 1, rank - 2]
    turned = emit("Transpose", [summed], source.dtype, [shape[a] for a in perm], perm=perm)
    between = emit("Sub", [summed, turned], source.dtype, wide)
    return emit("Trilu", [between], source.dtype, wide, upper=0)
