"""TrtLowBit: planes say what the packed codes said, and what has no kernels is written out."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.graph import Emitter
from intaglio.passes.low_bit import LowBitWeight, add_weight, look_up, product
from intaglio.passes.lower.trt_low_bit import TrtLowBit
from intaglio.passes.own_ops import define

N = 6


def weight(K: int, bits: int, group: int, *, offset: bool = True) -> LowBitWeight:
    random = np.random.default_rng(0)
    half, count = 1 << (bits - 1), -(-K // group)
    codes = random.integers(-half, half, (N, K)).astype(np.int8)
    scale, moved = (random.normal(size=(N, count)).astype(np.float32) for _ in range(2))
    return LowBitWeight.of(codes, scale, moved if offset else None, bits=bits, group=group)


def graph_of(made: LowBitWeight, *, bias: bool = False) -> ir.Model:
    """A product with the weight, of an input of three dimensions."""
    text = f"""<ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, {made.K}] x) => (float[batch, time, {N}] y) {{ y = Identity (x) }}
    """
    model = ir.from_onnx_text(text)
    (node,) = model.graph
    emit = Emitter(node, "lm_head")
    values = add_weight(model.graph, "w", made)
    added = emit.constant(np.arange(N), np.float32) if bias else None
    node.replace_input_with(0, product(emit, model.graph.inputs[0], values, made, added))
    define(model)
    return model


@pytest.mark.parametrize("group", [16, 32, 48, 64, 128, 256, 300])
@pytest.mark.parametrize("bias", [False, True])
def test_planes_compute_the_same(group: int, bias: bool) -> None:
    """The body reads them in ONNX Runtime; last groups may be short, blocks filled up."""
    made = weight(300, 2, group)
    model = graph_of(made, bias=bias)
    x = np.random.default_rng(1).normal(size=(2, 3, 300)).astype(np.float32)
    (wanted,) = evaluate.run(model, {"x": x}).values()
    result = TrtLowBit().run(model, Context())
    (got,) = evaluate.run(model, {"x": x}).values()

    assert result.details == {"arranged": 1, "written_out": 0}
    np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())
    (node,) = [node for node in model.graph if node.domain]
    assert [str(v.dtype) for v in node.inputs[1:4] if v is not None] == ["INT32", "FLOAT", "FLOAT"]
    assert len(model.functions) == 1
    assert not TrtLowBit().run(model, Context()).changed


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (3, 16), (8, 64), (2, 24)])
def test_other_weights_are_written_out(bits: int, group: int) -> None:
    """With advice: they take their full size in the engine."""
    model = graph_of(weight(96, bits, group, offset=False), bias=True)
    x = np.random.default_rng(1).normal(size=(1, 2, 96)).astype(np.float32)
    (wanted,) = evaluate.run(model, {"x": x}).values()
    result = TrtLowBit().run(model, Context())
    (got,) = evaluate.run(model, {"x": x}).values()

    np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())
    assert not model.functions
    assert "1 weights of few bits are written out" in result.advice[0]


def test_a_table_is_written_out(apply: Callable[..., ir.Model]) -> None:
    """TensorRT looks up rows of floats alone."""
    del apply
    made = weight(64, 2, 32)
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 24]>
        g (int64[batch] ids, float[6, 64] w) => (float[batch, 64] y) { y = Gather (w, ids) }
    """)
    (node,) = model.graph
    emit, values = Emitter(node), add_weight(model.graph, "table", made)
    rows = look_up(emit, node, values, made)
    model.graph.outputs[0] = rows
    model.graph.remove(node, safe=False)
    define(model)
    TrtLowBit().run(model, Context())
    ids = np.array([0, 5, 3])
    (got,) = evaluate.run(model, {"ids": ids, "w": np.zeros((6, 64), np.float32)}).values()

    np.testing.assert_array_equal(got, made.dequantize()[ids])
