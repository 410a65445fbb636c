"""Recognising y * sigmoid(y), which several lowerings fuse into what stands before it."""

import onnx_ir as ir

from intaglio.passes.graph import factors, producer


def silu_of(value: ir.Value | None) -> ir.Value | None:
    """The y where `value` is y * sigmoid(y), else None."""
    for y, gate in factors(value):
        node = producer(gate, "Sigmoid")
        if node is not None and node.inputs[0] is y:
            return y
    return None
