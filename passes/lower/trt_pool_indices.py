"""Where the largest entries of windows are: TensorRT has no second output of MaxPool.

The entries that a place of the kernel meets are a slice of the padded input with the strides of the
windows.  Of these slices, one for each place, the first that is the largest is the place; from it
and from where the window starts follows the index, counted over all axes as the standard does.
Entries have to be above the lowest of their type, which stands in the padding.
"""

import itertools
import math

import numpy as np
import onnx_ir as ir

from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import Dim, Emitter, attribute, describe, dims, replace_uses

INT64 = ir.DataType.INT64
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
MOST = 64  # places of a kernel


class TrtPoolIndices(Lower):
    """Compute the second output of MaxPool beside the first."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite each pooling whose indices something reads."""
        nodes = [node for node in model.graph if _tells_places(node)]
        for node in nodes:
            _write(node)
        return PassResult(changed=bool(nodes), notes=[describe(node) for node in nodes])


def _tells_places(node: ir.Node) -> bool:
    if node.op_type != "MaxPool" or node.domain or len(node.outputs) < 2:
        return False
    data, indices = node.inputs[0], node.outputs[1]
    if data is None or not (list(indices.uses()) or indices.is_graph_output()):
        return False
    plain = not attribute(node, "ceil_mode", 0) and not attribute(node, "storage_order", 0)
    plain = plain and attribute(node, "auto_pad", "NOTSET") == "NOTSET"
    known = data.dtype in FLOATS and dims(data) is not None
    return plain and known and math.prod(attribute(node, "kernel_shape")) <= MOST


def _write(node: ir.Node) -> None:
    data, emit = node.inputs[0], Emitter(node)
    assert data is not None
    assert data.dtype is not None
    kernel = list(attribute(node, "kernel_shape"))
    count = len(kernel)
    ones = [1] * count
    steps, apart = (list(attribute(node, n, ones)) for n in ("strides", "dilations"))
    pads = list(attribute(node, "pads", [0] * 2 * count))
    known = dims(node.outputs[0])
    shape: list[Dim] | None = None if known is None or "?" in known else list(known)
    options = dict(node.attributes)
    (pooled,) = emit.node("MaxPool", [data], [(data.dtype, shape)], {})
    maker = pooled.producer()
    assert maker is not None
    maker.attributes.update(options)
    low = emit.constant(np.finfo(data.dtype.numpy()).min, data.dtype.numpy())
    widths = emit.constant([0, 0, *pads[:count], 0, 0, *pads[count:]])
    padded = emit("Pad", [data, widths, low], data.dtype, None)
    sizes = emit("Shape", [pooled], INT64, [count], start=2)
    last = emit("Mul", [emit("Sub", [sizes, emit.constant(1)], INT64, [count]),
                        emit.constant(steps)], INT64, [count])  # fmt: skip
    axes, stride = emit.constant(list(range(2, count + 2))), emit.constant(steps)
    places = list(itertools.product(*map(range, kernel)))
    slices = []
    for place in places:
        start = emit.constant([at * by for at, by in zip(place, apart, strict=True)])
        end = emit("Add", [last, emit("Add", [start, emit.constant(1)], INT64, [count])], INT64,
                   [count])  # fmt: skip
        entry = emit("Slice", [padded, start, end, axes, stride], data.dtype, shape)
        slices.append(
            emit("Unsqueeze", [entry, emit.constant([-1])], data.dtype, shape and [*shape, 1])
        )
    joined = emit("Concat", slices, data.dtype, shape and [*shape, len(places)], axis=-1)
    best = emit("ArgMax", [joined], INT64, shape, axis=-1, keepdims=0)
    index = _rows(emit, data, count)
    for axis in range(count):
        size = emit("Shape", [data], INT64, [1], start=axis + 2, end=axis + 3)
        table = emit.constant([place[axis] * apart[axis] - pads[axis] for place in places])
        within = emit("Gather", [table, best], INT64, shape)
        start = _counted(emit, pooled, axis, count, steps[axis])
        here = emit("Add", [within, start], INT64, shape)
        index = emit("Add", [emit("Mul", [index, size], INT64, shape), here], INT64, shape)
    for old, new in zip(node.outputs, (pooled, index), strict=True):
        replace_uses(old, new)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _rows(emit: Emitter, data: ir.Value, count: int) -> ir.Value:
    """Which channel of all rows this is, [batch, channels, 1, ...]."""
    both = emit("Shape", [data], INT64, [2], start=0, end=2)
    total = emit("ReduceProd", [both, emit.constant([0])], INT64, [], keepdims=0)
    each = emit("Range", [emit.constant(0), total, emit.constant(1)], INT64, None)
    target = emit("Concat", [both, emit.constant([1] * count)], INT64, [count + 2], axis=0)
    return emit("Reshape", [each, target], INT64, [*(dims(data) or ())[:2], *[1] * count])


def _counted(emit: Emitter, pooled: ir.Value, axis: int, count: int, step: int) -> ir.Value:
    """Where windows start along an axis, beside all others, without the padding."""
    size = emit("Shape", [pooled], INT64, [1], start=axis + 2, end=axis + 3)
    size = emit("Squeeze", [size, emit.constant([0])], INT64, [])
    each = emit("Range", [emit.constant(0), size, emit.constant(1)], INT64, None)
    each = emit("Mul", [each, emit.constant(step)], INT64, None)
    target = emit.constant([-1, *[1] * (count - 1 - axis)])
    return emit("Reshape", [each, target], INT64, None)
