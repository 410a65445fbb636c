"""Graphs of weights of few bits, before and after they are lowered to ONNX Runtime's kernels."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from intaglio.passes.base import Context
from intaglio.passes.exact.remove_dead import RemoveDead
from intaglio.passes.graph import Emitter
from intaglio.passes.low_bit import LowBitWeight, add_weight, look_up, product
from intaglio.passes.lower.ort_low_bit import OrtLowBit
from intaglio.passes.own_ops import define

FLOAT = ir.DataType.FLOAT


def draw(bits: int, rows: int, K: int, group: int, offset: str = "floats") -> LowBitWeight:
    """A random weight; its offset none, floats, or what integer zero points make."""
    random = np.random.default_rng(bits)
    half = 1 << (bits - 1)
    codes = random.integers(-half, half, (rows, K)).astype(np.int8)
    shape = rows, -(-K // group)
    scale = (random.uniform(0.5, 1.5, shape) / half).astype(np.float32)
    offsets = {
        "none": None,
        "floats": random.standard_normal(shape).astype(np.float32) / 4,
        "points": (scale * random.integers(1 - half, half + 1, shape)).astype(np.float32),
    }
    return LowBitWeight.of(codes, scale, offsets[offset], bits=bits, group=group)


def graph_of(
    weights: Sequence[LowBitWeight], *, turned: bool = False, table: bool = False
) -> ir.Model:
    """Products of one input with each weight w0, w1, ..; a `table` is looked up in the first."""
    x, ids = (ir.Value(name=name) for name in ("x", "ids"))
    x.type, x.shape = ir.TensorType(FLOAT), ir.Shape(["batch", weights[0].K])
    ids.type, ids.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["batch"])
    graph = ir.Graph([x, ids], [], nodes=[], opset_imports={"": 24}, name="g")
    anchor = ir.node("Identity", [x], name="anchor")
    graph.append(anchor)
    for index, weight in enumerate(weights):
        values = add_weight(graph, f"w{index}", weight, turned=turned)
        graph.outputs.append(product(Emitter(anchor, f"layer{index}"), x, values, weight))
        if table and not index:
            rows = ir.Value(name="rows", type=ir.TensorType(FLOAT))
            rows.shape = ir.Shape(["batch", weight.K])
            gather = ir.node("Gather", [values[0], ids], outputs=[rows], name="gather")
            graph.append(gather)
            graph.outputs.append(look_up(Emitter(gather, "table"), gather, values, weight))
            graph.remove(gather)
    graph.remove(anchor, safe=True)
    for index, value in enumerate(graph.outputs):
        value.name = f"y{index}"
    model = ir.Model(graph, ir_version=12)
    define(model)
    return model


def lowered(model: ir.Model) -> ir.Model:
    OrtLowBit(accuracy="fast").run(model, Context())
    RemoveDead().run(model, Context())
    return model
