"""Transposes of what moves windows over its input, pads it, cuts it or picks from it.

Each rule is given a node, what arrives at its output, and what emits nodes; it returns what arrives
at the inputs.
"""

from collections.abc import Callable
from math import prod

import numpy as np
import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.graph import Emitter, attribute, describe, dims, input_of, integers

Rule = Callable[[ir.Node, ir.Value, Emitter], list[tuple[ir.Value, ir.Value]]]
"""From a node and what arrives at its output, what arrives at each input that moves."""


def expanded(
    value: ir.Value, shape: tuple[int | str, ...], rows: ir.Value, like: ir.Value, emit: Emitter
) -> ir.Value:
    """`value` stretched to `shape`, with as many rows as `rows` has."""
    count = emit("Shape", [rows], ir.DataType.INT64, [1], start=0, end=1)
    rest = emit.constant([int(dim) for dim in shape[1:]])
    size = emit("Concat", [count, rest], ir.DataType.INT64, [len(shape)], axis=0)
    return emit("Expand", [value, size], like.dtype, shape)


def reshaped(value: ir.Value, like: ir.Value, emit: Emitter) -> ir.Value:
    shape = dims(like)
    assert shape is not None
    return emit("Reshape", [value, emit.constant([-1, *map(int, shape[1:])])], like.dtype, shape)


def data_of(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def cut(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    """Of a Slice in steps of one: zeros around it."""
    value = data_of(node)
    shape = dims(value)
    assert shape is not None
    starts, ends = integers(node.inputs[1]), integers(node.inputs[2])
    axes = integers(input_of(node, 3))
    steps = integers(input_of(node, 4)) or [1]
    if starts is None or ends is None or any(step != 1 for step in steps):
        raise PassError(f"{describe(node)} is cut in steps, and has no transpose here.")
    pads = [0] * (2 * len(shape))
    for axis, start, end in zip(axes or range(len(starts)), starts, ends, strict=True):
        at = axis % len(shape)
        if isinstance(shape[at], str):
            raise PassError(f"{describe(node)} takes some rows, and has no transpose here.")
        size = int(shape[at])
        first, last = (min(max(n + size if n < 0 else n, 0), size) for n in (start, end))
        pads[at], pads[at + len(shape)] = first, size - last
    return [(value, emit("Pad", [piece, emit.constant(pads)], value.dtype, shape))]


def padded(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    value, pads = data_of(node), integers(node.inputs[1])
    shape, mode = dims(value), attribute(node, "mode", "constant")
    assert shape is not None
    if pads is None or mode != "constant" or min(pads) < 0 or input_of(node, 3) is not None:
        raise PassError(f"{describe(node)} pads with {mode}, and has no transpose here.")
    inner = range(1, len(shape))
    if pads[0] or pads[len(shape)]:
        raise PassError(f"{describe(node)} pads rows, and has no transpose here.")
    starts = [pads[i] for i in inner]
    ends = [pads[i] + int(shape[i]) for i in inner]
    cut = [emit.constant(n) for n in (starts, ends, list(inner))]
    return [(value, emit("Slice", [piece, *cut], value.dtype, shape))]


def convolution(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    value, weight = data_of(node), node.inputs[1]
    shape, out, kernel = dims(value), dims(node.outputs[0]), dims(weight)
    assert shape is not None
    assert out is not None
    assert kernel is not None
    rank = len(shape) - 2
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise PassError(f"{describe(node)} pads by itself, and has no transpose here.")
    strides = list(attribute(node, "strides", [1] * rank))
    pads = list(attribute(node, "pads", [0] * (2 * rank)))
    dilations = list(attribute(node, "dilations", [1] * rank))
    more = [
        int(shape[2 + i])
        - (
            (int(out[2 + i]) - 1) * strides[i]
            - pads[i]
            - pads[rank + i]
            + dilations[i] * (int(kernel[2 + i]) - 1)
            + 1
        )
        for i in range(rank)
    ]
    found = emit(
        "ConvTranspose", [piece, weight], value.dtype, shape, strides=strides, pads=pads,
        dilations=dilations, output_padding=more, group=int(attribute(node, "group", 1)),
    )  # fmt: skip
    return [(value, found)]


def deconvolution(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    value, weight = data_of(node), node.inputs[1]
    shape = dims(value)
    assert shape is not None
    rank = len(shape) - 2
    own = {
        "strides": list(attribute(node, "strides", [1] * rank)),
        "pads": list(attribute(node, "pads", [0] * (2 * rank))),
        "dilations": list(attribute(node, "dilations", [1] * rank)),
        "group": int(attribute(node, "group", 1)),
    }
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET" or attribute(node, "output_shape"):
        raise PassError(f"{describe(node)} pads by itself, and has no transpose here.")
    return [(value, emit("Conv", [piece, weight], value.dtype, shape, **own))]


def pooled(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    """Of an AveragePool: a transposed convolution of each channel with a constant window."""
    value = data_of(node)
    shape, out = dims(value), dims(node.outputs[0])
    assert shape is not None
    assert out is not None
    rank, kernel = len(shape) - 2, list(attribute(node, "kernel_shape"))
    strides = list(attribute(node, "strides", [1] * rank))
    pads = list(attribute(node, "pads", [0] * (2 * rank)))
    around = any(pads) and not attribute(node, "count_include_pad", 0)
    odd = attribute(node, "ceil_mode", 0) or attribute(node, "auto_pad", "NOTSET") != "NOTSET"
    if around or odd or attribute(node, "dilations", [1] * rank) != [1] * rank:
        raise PassError(f"{describe(node)} averages windows of unequal size: no transpose here.")
    window = np.full((int(shape[1]), 1, *kernel), 1 / prod(kernel))
    more = [
        int(shape[2 + i])
        - ((int(out[2 + i]) - 1) * strides[i] - pads[i] - pads[rank + i] + kernel[i])
        for i in range(rank)
    ]
    found = emit(
        "ConvTranspose", [piece, emit.constant(window, np.float32)], value.dtype, shape,
        strides=strides, pads=pads, output_padding=more, group=int(shape[1]),
    )  # fmt: skip
    return [(value, found)]


def picked(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    """Of a Gather along the second axis: added where each entry was taken from."""
    value, index = data_of(node), node.inputs[1]
    shape, places = dims(value), dims(index)
    assert shape is not None
    assert places is not None
    if int(attribute(node, "axis", 0)) != 1 or len(shape) != 2:
        raise PassError(f"{describe(node)} picks entries in a way that has no transpose here.")
    count = prod(int(dim) for dim in places)
    flat = emit("Reshape", [piece, emit.constant([-1, count])], value.dtype, [shape[0], count])
    one = emit("Reshape", [index, emit.constant([1, count])], ir.DataType.INT64, [1, count])
    rows = expanded(one, (shape[0], count), piece, one, emit)
    zeros = expanded(emit.constant(0, np.float32), shape, piece, value, emit)
    made = emit("ScatterElements", [zeros, rows, flat], value.dtype, shape, axis=1, reduction="add")
    return [(value, made)]
