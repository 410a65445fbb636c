"""What units that are not linear did to one input, and how that is done to another.

A rectifier's slopes, the places that a pool took, the mean and spread of a norm, and (phi(a) -
phi(0)) / a of another activation are computed by the stream that records; the stream that replays
takes them as inputs, and is affine in its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log, pi, sqrt

import numpy as np
import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.graph import (
    Emitter,
    attribute,
    attributes_of,
    describe,
    dims,
    input_of,
    integers,
    replace_uses,
    type_of,
)

NEAR = 1e-6  # of zero, where phi(a) / a is its limit
SLOPES = {
    "Celu": 1.0,
    "Elu": 1.0,
    "Erf": 2 / sqrt(pi),
    "Gelu": 0.5,
    "HardSwish": 0.5,
    "Mish": 0.6,
    "Selu": 1.0507009873554805,
    "Sigmoid": 0.25,
    "Softplus": 0.5,
    "Softsign": 1.0,
    "Swish": 0.5,
    "Tanh": 1.0,
}
"""Activations with a finite phi(a) / a, and its limit at 0."""
AT_ZERO = {"Sigmoid": 0.5, "Softplus": log(2)}


@dataclass
class TwoStreams:
    """Two copies of a graph that are rewritten side by side, and the values between them."""

    record: ir.Model
    replay: ir.Model
    tail: ir.Node = field(init=False)

    def __post_init__(self) -> None:
        """Put a node at the end of the first one, in front of which all that is recorded stands."""
        graph = self.record.graph
        self.tail = ir.node("Identity", [graph.outputs[0]], name="tail")
        graph.append(self.tail)

    def decide(self, name: str, value: ir.Value) -> ir.Value:
        """What the first stream computes as `value`, an output of it and an input of the second."""
        self.record.graph.outputs.append(value)
        value.name = name
        one = [1, *(dims(value) or ())[1:]]  # of the one input that is recorded
        given = ir.Value(name=name, type=value.type, shape=ir.Shape(one))
        self.replay.graph.inputs.append(given)
        return given


def replay(streams: TwoStreams, own: ir.Node, node: ir.Node) -> None:
    """Let `node` of the second stream do what `own` did in the first."""
    build = FORMS.get(node.op_type) if not node.domain else None
    if build is None and node.op_type in SLOPES and not node.domain:
        build = _smooth
    if build is None:
        raise PassError(
            f"linear-interpreter: {describe(node)} has no affine form here ({type_of(node)})."
        )
    new = build(streams, own, node)
    replace_uses(node.outputs[0], new)
    node.graph.remove(node, safe=True)  # type: ignore[union-attr]


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _scaled(streams: TwoStreams, own: ir.Node, node: ir.Node, gate: ir.Value) -> ir.Value:
    """The second stream times what the first recorded."""
    a = _first(node)
    given = streams.decide(f"{own.outputs[0].name}.gate", gate)
    return Emitter(node)("Mul", [a, given], a.dtype, dims(a))


def _rectifier(streams: TwoStreams, own: ir.Node, node: ir.Node) -> ir.Value:
    """One above zero, a slope below it."""
    emit, a = Emitter(streams.tail, str(own.name)), _first(own)
    positive = emit("Greater", [a, emit.constant(0, np.float32)], ir.DataType.BOOL, dims(a))
    if node.op_type == "PRelu":
        slope = own.inputs[1]
    else:
        default = {"LeakyRelu": 0.01}.get(node.op_type, 0.0)
        slope = emit.constant(attribute(own, "alpha", default), np.float32)
    one = emit.constant(1, np.float32)
    gate = emit("Where", [positive, one, slope], a.dtype, dims(a))
    return _scaled(streams, own, node, gate)


def _smooth(streams: TwoStreams, own: ir.Node, node: ir.Node) -> ir.Value:
    """(phi(a) - phi(0)) / a times the second stream, and phi(0)."""
    emit, a, shape = Emitter(streams.tail, str(own.name)), _first(own), dims(_first(own))
    zero = AT_ZERO.get(own.op_type, 0.0)
    size = emit("Abs", [a], a.dtype, shape)
    near = emit("Less", [size, emit.constant(NEAR, np.float32)], ir.DataType.BOOL, shape)
    safe = emit("Where", [near, emit.constant(1, np.float32), a], a.dtype, shape)
    moved = emit("Sub", [own.outputs[0], emit.constant(zero, np.float32)], a.dtype, shape)
    share = emit("Div", [moved, safe], a.dtype, shape)
    limit = emit.constant(SLOPES[own.op_type], np.float32)
    scaled = _scaled(streams, own, node, emit("Where", [near, limit, share], a.dtype, shape))
    if not zero:
        return scaled
    back = Emitter(node)
    return back("Add", [scaled, back.constant(zero, np.float32)], a.dtype, shape)


def _clip(streams: TwoStreams, own: ir.Node, node: ir.Node) -> ir.Value:
    """The second stream where the first was between the bounds, else the bound."""
    emit, a, shape = Emitter(streams.tail, str(own.name)), _first(own), dims(_first(own))
    same = emit("Equal", [a, own.outputs[0]], ir.DataType.BOOL, shape)
    gate = emit("Cast", [same], a.dtype, shape, to=a.dtype)
    rest = emit("Sub", [own.outputs[0], emit("Mul", [a, gate], a.dtype, shape)], a.dtype, shape)
    scaled = _scaled(streams, own, node, gate)
    bound = streams.decide(f"{own.outputs[0].name}.bound", rest)
    return Emitter(node)("Add", [scaled, bound], a.dtype, shape)


def _max_pool(streams: TwoStreams, own: ir.Node, node: ir.Node) -> ir.Value:
    """What stands at the places that the first stream took."""
    taken, shape = _first(own), dims(own.outputs[0])
    assert shape is not None
    pooled = Emitter(own).node(
        "MaxPool",
        list(own.inputs),
        [(taken.dtype, shape), (ir.DataType.INT64, shape)],
        attributes_of(own),
    )
    replace_uses(own.outputs[0], pooled[0])
    own.graph.remove(own, safe=True)  # type: ignore[union-attr]
    places = streams.decide(f"{pooled[0].name}.places", pooled[1])
    emit, a = Emitter(node), _first(node)
    inner = dims(a)
    assert inner is not None
    flat = [inner[0], int(np.prod([int(d) for d in inner[1:]]))]
    rows = emit("Reshape", [a, emit.constant([-1, flat[1]])], a.dtype, flat)
    index = emit("Reshape", [places, emit.constant(shape[1:])], ir.DataType.INT64, shape[1:])
    return emit("Gather", [rows, index], a.dtype, [inner[0], *shape[1:]], axis=1)


def _maximum(streams: TwoStreams, own: ir.Node, node: ir.Node) -> ir.Value:
    """The mean of what stands where the first stream had its largest entries."""
    emit, a = Emitter(streams.tail, str(own.name)), _first(own)
    shape = dims(a)
    assert shape is not None
    if own.op_type == "GlobalMaxPool":
        axes, keep = list(range(2, len(shape))), 1
    else:
        axes, keep = integers(input_of(own, 1)) or [], int(attribute(own, "keepdims", 1))
        axes = [axis % len(shape) for axis in axes] or list(range(1, len(shape)))
    ends: list[int | str] = [1 if i in axes else d for i, d in enumerate(shape)]
    index = emit.constant(axes)
    most = emit("ReduceMax", [a, index], a.dtype, ends, keepdims=1)
    same = emit("Equal", [a, most], ir.DataType.BOOL, shape)
    mask = emit("Cast", [same], a.dtype, shape, to=a.dtype)
    count = emit("ReduceSum", [mask, index], a.dtype, ends, keepdims=1)
    scaled = _scaled(streams, own, node, emit("Div", [mask, count], a.dtype, shape))
    back = Emitter(node)
    out = dims(node.outputs[0])
    return back("ReduceSum", [scaled, back.constant(axes)], a.dtype, out, keepdims=keep)


def _norm(streams: TwoStreams, own: ir.Node, node: ir.Node) -> ir.Value:
    """(a - mean) / spread of the first stream, scaled and shifted as the norm does."""
    emit, a = Emitter(streams.tail, str(own.name)), _first(own)
    shape = dims(a)
    assert shape is not None
    instance = own.op_type == "InstanceNormalization"
    start = 2 if instance else int(attribute(own, "axis", -1)) % len(shape)
    ends: list[int | str] = [1 if i >= start else d for i, d in enumerate(shape)]
    index, kind = emit.constant(list(range(start, len(shape)))), a.dtype
    centred = a
    b = _first(node)
    back = Emitter(node)
    if own.op_type != "RMSNormalization":
        mean = emit("ReduceMean", [a, index], kind, ends, keepdims=1)
        centred = emit("Sub", [a, mean], kind, shape)
        b = back("Sub", [b, streams.decide(f"{own.outputs[0].name}.mean", mean)], kind, dims(b))
    squares = emit("Mul", [centred, centred], kind, shape)
    spread = emit("ReduceMean", [squares, index], kind, ends, keepdims=1)
    epsilon = emit.constant(attribute(own, "epsilon", 1e-5), np.float32)
    root = emit("Sqrt", [emit("Add", [spread, epsilon], kind, ends)], kind, ends)
    scale = streams.decide(f"{own.outputs[0].name}.scale", emit("Reciprocal", [root], kind, ends))
    found = back("Mul", [b, scale], kind, dims(b))
    return _weighted(back, node, found, across=instance)


def _group_norm(streams: TwoStreams, own: ir.Node, node: ir.Node) -> ir.Value:
    """The same where channels share mean and spread in groups."""
    emit, a = Emitter(streams.tail, str(own.name)), _first(own)
    shape, groups, kind = dims(a), int(attribute(own, "num_groups")), _first(own).dtype
    assert shape is not None
    each, ones = int(shape[1]) // groups, [1] * (len(shape) - 2)
    apart = [shape[0], groups, each, *shape[2:]]
    parts = emit("Reshape", [a, emit.constant([-1, *map(int, apart[1:])])], kind, apart)
    index = emit.constant(list(range(2, len(apart))))
    ends = [shape[0], groups, 1, *ones]

    def by_channel(value: ir.Value) -> ir.Value:
        wide = [shape[0], groups, each, *ones]
        size = emit.constant([1, groups, each, *ones])
        value = emit("Expand", [value, size], kind, wide)
        own_shape = [shape[0], shape[1], *ones]
        return emit("Reshape", [value, emit.constant([-1, int(shape[1]), *ones])], kind, own_shape)

    mean = emit("ReduceMean", [parts, index], kind, ends, keepdims=1)
    centred = emit("Sub", [parts, mean], kind, apart)
    squares = emit("Mul", [centred, centred], kind, apart)
    spread = emit("ReduceMean", [squares, index], kind, ends, keepdims=1)
    epsilon = emit.constant(attribute(own, "epsilon", 1e-5), np.float32)
    root = emit("Sqrt", [emit("Add", [spread, epsilon], kind, ends)], kind, ends)
    scale = by_channel(emit("Reciprocal", [root], kind, ends))
    back, b = Emitter(node), _first(node)
    name = own.outputs[0].name
    moved = back("Sub", [b, streams.decide(f"{name}.mean", by_channel(mean))], kind, dims(b))
    found = back("Mul", [moved, streams.decide(f"{name}.scale", scale)], kind, dims(b))
    return _weighted(back, node, found, across=True)


def _weighted(back: Emitter, node: ir.Node, found: ir.Value, *, across: bool) -> ir.Value:
    """`found` times the scale of a norm, plus its bias; `across` where these are of channels."""
    shape = dims(found)
    assert shape is not None
    for op, weight in zip(("Mul", "Add"), node.inputs[1:], strict=False):
        if weight is not None:
            if across:
                size = [-1, *[1] * (len(shape) - 2)]
                wide = [weight, back.constant(size)]
                weight = back("Reshape", wide, found.dtype, [shape[1], *size[1:]])  # noqa: PLW2901
            found = back(op, [found, weight], found.dtype, shape)
    return found


Form = Callable[[TwoStreams, ir.Node, ir.Node], ir.Value]
FORMS: dict[str, Form] = {
    "Clip": _clip,
    "GlobalMaxPool": _maximum,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _norm,
    "LayerNormalization": _norm,
    "LeakyRelu": _rectifier,
    "MaxPool": _max_pool,
    "PRelu": _rectifier,
    "RMSNormalization": _norm,
    "ReduceMax": _maximum,
    "Relu": _rectifier,
}
