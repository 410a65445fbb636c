"""Two projections in a row in place of one, whose product its weight was."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from intaglio.passes.analysis.projections import Projection, stem_of
from intaglio.passes.graph import Emitter, add_initializer, constant, dims, made_of, replace_uses

Array = npt.NDArray[Any]


def put_factors(
    graph: ir.Graph, layers: Sequence[Projection], right: Array, lefts: Sequence[Array]
) -> dict[str, list[str]]:
    """Let layers that read one value read `right` [r, K] of it, each with its own left [N, r].

    They are in the order of the graph, and their weights are stored alike, as the new ones are:
    [N, r] and [r, K], or [K, r] and [r, N].

    Returns:
        The names of the two weights whose product each weight was, by its name.
    """
    first = layers[0]
    name = f"{stem_of(first)}.first.weight"
    emit = Emitter(first.node)
    sources = [source for layer in layers for source in made_of(layer.weight)]
    shared = _initializer(graph, first, name, right, sources)
    read = first.node.inputs[0]  # what was made of `x`, where factors took its place before
    assert read is not None
    x = _times(emit, first, read, shared, right)
    found = {}
    for layer, left in zip(layers, lefts, strict=True):
        own = f"{stem_of(layer)}.second.weight"
        emit = Emitter(layer.node)
        second = _initializer(graph, layer, own, left, made_of(layer.weight))
        y = _times(emit, layer, x, second, left)
        if layer.bias is not None:
            y = emit("Add", [y, layer.bias], y.dtype, dims(y))
        replace_uses(layer.node.outputs[0], y)
        graph.remove(layer.node, safe=True)
        found[layer.weight.name or ""] = [own, name] if layer.by_output else [name, own]
    return found


def _initializer(
    graph: ir.Graph, layer: Projection, name: str, array: Array, of: Sequence[str]
) -> ir.Value:
    old = constant(layer.weight)
    assert old is not None
    held = array if layer.by_output else array.T
    return add_initializer(graph, name, held.astype(old.dtype), of=of)


def _times(
    emit: Emitter, layer: Projection, x: ir.Value, weight: ir.Value, array: Array
) -> ir.Value:
    """`x` times the transpose of `array`, which `weight` holds as `layer` has its own."""
    dtype = layer.node.outputs[0].dtype
    shape = [*(dims(layer.node.outputs[0]) or ())[:-1], array.shape[0]]
    operand = weight
    if layer.by_output:
        operand = emit("Transpose", [weight], dtype, array.shape[::-1], perm=[1, 0])
    return emit("MatMul", [x, operand], dtype, shape)
