"""Recurrent layers as TensorRT's importer knows them: LSTM, GRU and RNN of the standard.

TensorRT computes them in loops of its own, so RNN has no plugin; its importer would take the node
for the standard's operator of that name.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import describe
from intaglio.signature import DOMAIN

LOOPED = "RNN"


class TrtLoops(Lower):
    """Write the nodes of `LOOPED` out in standard operators."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Put the body of each in its place, in the module of the node."""
        nodes = [n for n in model.graph if (n.domain, n.op_type) == (DOMAIN, LOOPED)]
        notes = [describe(node) for node in nodes]
        if nodes:
            common.InlinePass(lambda function: function.name == LOOPED)(model)
        return PassResult(changed=bool(nodes), notes=notes)
