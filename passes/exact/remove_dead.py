"""Remove what no output needs: unused nodes, identities, unused initializers and opset imports."""

from itertools import chain

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.passes.base import Exact, PassResult


class RemoveDead(Exact):
    """Remove nodes and initializers that no output depends on."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Remove them; a graph output keeps its name when the Identity before it goes."""
        graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        walks = (ir.traversal.RecursiveGraphIterator(graph) for graph in graphs)
        # The common pass takes those before outputs away, too, of which some are needed.
        modified = [_eliminated(node) for node in chain(*walks) if node.op_type == "Identity"]
        steps = (common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass())
        modified += [step(model).modified for step in steps]
        return PassResult(changed=any(modified))


def _eliminated(node: ir.Node) -> bool:
    """Take an Identity away, unless it is what makes its input an output of its graph.

    A value is one output under one name, and made in the graph that it is an output of.
    """
    (source,), (copy,) = node.inputs, node.outputs
    if node.domain or source is None:
        return False
    output = copy.is_graph_output()
    producer = source.producer()
    made_here = producer is not None and producer.graph is node.graph
    if output and (not made_here or source.is_graph_output()):
        return False
    name = copy.name if output else source.name
    ir.convenience.replace_all_uses_with(copy, source, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    source.name = name
    source.shape = _known(source.shape, copy.shape)
    source.type = source.type or copy.type
    return True


def _known(shape: ir.Shape | None, other: ir.Shape | None) -> ir.Shape | None:
    """What is known of two shapes that are one: numbers before symbols, symbols before nothing."""
    if shape is None or other is None:
        return shape or other
    return ir.Shape([min(pair, key=_vague) for pair in zip(shape, other, strict=True)])


def _vague(dim: int | ir.SymbolicDim) -> int:
    return 0 if isinstance(dim, int) else 1 + (dim.value is None)
