"""AffineLowBitGather -> com.microsoft::GatherBlockQuantized, where the groups are whole blocks."""

from typing import Any

import onnx_ir as ir

from intaglio.passes.graph import Emitter, add_initializer, dims, replace_uses
from intaglio.passes.low_bit import LowBitWeight, note_blocks

from ._block_format import to_blocks

DOMAIN = "com.microsoft"


def to_gather(node: ir.Node, weight: LowBitWeight) -> bool:
    """Lower a Gather; False, and nothing done, where its groups are not whole blocks."""
    blocks, graph = to_blocks(weight), node.graph
    if blocks.width is not None or blocks.K % blocks.block:
        return False
    assert isinstance(graph, ir.Graph)
    emit, indices, old = Emitter(node), node.inputs[0], node.outputs[0]
    names = [None if value is None else str(value.name) for value in node.inputs]

    def initializer(index: int, kind: str, array: Any) -> ir.Value | None:
        of = str(names[index])
        name = f"{of}.ort.rows.{kind}"
        return None if array is None else add_initializer(graph, name, array, of=[of])

    outer = list((dims(old) or ())[:-1])
    data = initializer(1, "data", blocks.data.reshape(weight.rows, -1))
    offsets = None
    if blocks.offset is not None:
        offsets = initializer(3, "offset", blocks.offset[..., None])
    assert data is not None
    note_blocks(data, [node], None if offsets is None else offsets.name)
    y = emit.node(
        "GatherBlockQuantized",
        [
            data,
            indices,
            initializer(2, "scales", blocks.scales),
            initializer(2, "zeros", blocks.zeros),
        ],
        [(old.dtype, dims(old))],
        {
            "bits": blocks.bits,
            "block_size": blocks.block,
            "gather_axis": 0,
            "quantize_axis": 1,
        },
        domain=DOMAIN,
    )[0]
    if blocks.offset is not None:
        count, group = blocks.offset.shape[1], min(weight.group, weight.K)
        shape = emit.constant([*[0] * len(outer), count, group])
        apart = emit("Reshape", [y, shape], y.dtype, [*outer, count, group])
        rows = emit("Gather", [offsets, indices], y.dtype, [*outer, count, 1], axis=0)
        moved = emit("Add", [apart, rows], y.dtype, [*outer, count, group])
        flat = emit.constant([*[0] * len(outer), weight.K])
        y = emit("Reshape", [moved, flat], y.dtype, dims(old))
    replace_uses(old, y)
    graph.remove(node, safe=True)
    return True
