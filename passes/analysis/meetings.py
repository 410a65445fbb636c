"""Where tokens meet: the nodes in which each token takes from others through values of pairs.

Attention takes a mask with an entry for each pair; written out it is a product of weights
[.., T, T] with values [.., T, size], and a sum over the keys may stand beside it.  A meeting is
such a node with the terms of what it takes.  It is causal where later tokens have no weight, which
is proven here; all that lies behind it and is no data of one token is computed anew for each step,
and is hidden from the analysis of time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from intaglio.passes.graph import attribute, dims, input_of

from .blocks import Blocks, blocks
from .bounding import MARGIN, forbids_later
from .bounds import LONGEST
from .mask import Causal, Computed, context_limit, is_nothing_later, judge
from .origin import Origins
from .pair_reader import PairReader
from .pairs import Axes, PairTerm, TermKind, leaves, time_axes, walk
from .time_facts import normal, refuse

MASK = 3  # input of Attention

Verdicts = dict[ir.Value, tuple[PairTerm, Causal | Computed | Blocks]]


@dataclass(frozen=True, eq=False)
class Meeting:
    """A node and the terms that a step computes for it: a mask, or its result, or nothing.

    `mask` says what the mask of an Attention is; `axis` is the query axis of the result.
    """

    node: ir.Node
    terms: tuple[PairTerm, ...]
    axis: int
    mask: Causal | Computed | Blocks | None = None
    limit: int | None = None

    @property
    def data(self) -> list[PairTerm]:
        """The data of single tokens that is needed."""
        return list(dict.fromkeys(leaf for term in self.terms for leaf in leaves(term)))


@dataclass
class Meetings:
    """All meetings of a graph by node, and the nodes that are not hidden behind one."""

    found: dict[ir.Node, Meeting] = field(default_factory=dict)
    live: set[ir.Node] = field(default_factory=set)


def meetings(graph: ir.Graph) -> Meetings:
    """Find the meetings of `graph`.

    Raises:
        PassError: a mask, or weights, may give weight to a later token, or are not understood.
    """
    result, reader, origins = Meetings(), PairReader(graph), Origins(graph)
    verdicts: Verdicts = {}
    pending: list[ir.Value | None] = list(graph.outputs)
    while pending:
        value = pending.pop()
        node = None if value is None else value.producer()
        if node is None or node in result.live:
            continue
        result.live.add(node)
        found = None
        if not origins.look_outside(node):
            found = _meeting(node, reader, verdicts)
        if found is None:
            pending += node.inputs
            pending += _captured(node)
            continue
        result.found[node] = found
        pending += [leaf.value for leaf in found.data]
        if node.op_type == "Attention":
            pending += node.inputs[:MASK]
    return result


def _captured(node: ir.Node) -> Sequence[ir.Value | None]:
    graphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    return [value for graph in graphs for inner in graph.all_nodes() for value in inner.inputs]


def _meeting(node: ir.Node, reader: PairReader, verdicts: Verdicts) -> Meeting | None:
    if node.domain:
        return None
    if node.op_type == "Attention":
        mask = input_of(node, MASK)
        return None if mask is None else _attention(node, mask, reader, verdicts)
    if len(node.outputs) != 1 or len(time_axes(node.outputs[0])) > 1:
        return None
    if not any(len(time_axes(value)) > 1 for value in node.inputs):
        return None
    return _written_out(node, reader)


def _attention(
    node: ir.Node,
    mask: ir.Value,
    reader: PairReader,
    verdicts: Verdicts,
) -> Meeting:
    if any(value is not None for value in node.inputs[MASK + 1 :]):
        raise refuse(node, "has a cache already.")
    if mask not in verdicts:
        axes = time_axes(mask)
        rank = len(dims(mask) or ())
        term = reader.read(
            mask,
            Axes(
                rank - 2 if rank - 2 in axes else None,
                rank - 1 if rank - 1 in axes else None,
            ),
        )
        verdict = judge(term) or blocks(reader.graph, term, context_limit(term))
        if verdict is None:
            raise refuse(
                node,
                f"has an attention mask or bias of shape {list(dims(mask) or ())} that may allow a "
                "token to attend to later ones. Combine it with a causal mask inside the model, or "
                "use is_causal=True; where tokens see later ones of their own block alone, take "
                "the mask from a table of as many rows as the model takes tokens.",
            )
        verdicts[mask] = term, verdict
    term, verdict = verdicts[mask]
    alone = isinstance(verdict, Blocks) and verdict.alone
    terms = () if alone or isinstance(verdict, Causal) else (term,)
    return Meeting(node, terms, 2, verdict, verdict.limit)


def _written_out(node: ir.Node, reader: PairReader) -> Meeting:
    kept = time_axes(node.outputs[0])
    if len(kept) != 1:
        raise refuse(node, "sums over time, or compares tokens, in a way that has no step.")
    term = reader.open(node, Axes(query=kept[0]))
    limit = context_limit(term)
    tokens = limit or LONGEST
    for one in walk(term):
        _check_later(one, tokens)
    return Meeting(node, (term,), kept[0], None, limit)


def _check_later(term: PairTerm, tokens: int) -> None:
    """What sums over the keys, or ranks them, must leave out later ones."""
    if term.kind is not TermKind.NODE:
        return
    node, given = term.node, term.inputs[0] if term.inputs else None
    if given is None or given.axes.key is None:
        return
    sums = term.axes.key is None and node.op_type != "Slice"  # which takes those of no token
    if node.op_type == "CumSum":
        sums = term.axes.query is not None and bool(attribute(node, "reverse", 0))
    if node.op_type in ("Softmax", "LogSoftmax"):
        sums = normal(attribute(node, "axis", -1), len(given.shape)) == given.axes.key
    if not sums:
        return
    if node.op_type == "MatMul":
        sides = [one for one in term.inputs if one is not None]
        later = not any(_both(one) and is_nothing_later(one, tokens) for one in sides)
    elif node.op_type in ("CumSum", "ReduceSum"):
        later = not is_nothing_later(given, tokens)
    else:
        later = node.op_type == "ReduceMin" or not forbids_later(given, tokens, MARGIN)
    if later:
        raise refuse(
            node,
            "gives later tokens a weight, or it cannot be shown that it does not. Mask the scores "
            "with -inf where the key is later than the query.",
        )


def _both(term: PairTerm) -> bool:
    return term.axes.query is not None and term.axes.key is not None
