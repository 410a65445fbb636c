"""TrtHalf: what multiplies is in fp16, what normalizes and carries is not, and the edges stay."""

from collections.abc import Callable
from typing import Any

import hybrid
import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir import DataType

from intaglio.errors import PassError
from intaglio.passes import evaluate, pipeline
from intaglio.passes.base import Context, PassResult
from intaglio.passes.lower.trt_half import TrtHalf
from intaglio.passes.stepping import first_states
from intaglio.state import Layout

FULL, HALF = DataType.FLOAT, DataType.FLOAT16
HEAD = '<ir_version: 10, opset_import: ["" : 24]>'

Traced = Callable[..., tuple[ir.Model, Context]]


def halved(text: str) -> tuple[ir.Model, PassResult]:
    model = ir.from_onnx_text(f"{HEAD}\n{text}")
    inferred(model)
    return model, TrtHalf().run(model, Context())


def inferred(model: ir.Model) -> None:
    """Give every value of a graph written as text its dtype, as a traced one has it."""
    from onnx_ir.passes import common

    common.ShapeInferencePass()(model)


def dtypes(model: ir.Model, op: str) -> list[tuple[Any, ...]]:
    """Dtypes of the inputs and outputs of each node of an operator."""
    return [
        tuple(None if v is None else v.dtype for v in (*node.inputs, *node.outputs))
        for node in model.graph.all_nodes()
        if node.op_type == op
    ]


@pytest.fixture(scope="module")
def stepped(traced: Traced) -> tuple[ir.Model, Context]:
    """The step graph of a Gated DeltaNet with a layer of attention, lowered for TensorRT."""
    model, context = traced(hybrid.build())
    pipeline.run(model, pipeline.standard(), context)
    pipeline.lower(model, "trt", context)
    return model, context


def test_a_hybrid_model_computes_in_fp16_what_is_worth_it(
    stepped: tuple[ir.Model, Context],
) -> None:
    """Products, attention and recurrences; not norms, gates, nor any edge but the caches."""
    model, context = stepped[0].clone(), stepped[1]
    result = TrtHalf().run(model, context)

    assert result.details["caches"] == sum(s.layout is not Layout.RECURRENT for s in context.states)
    for op in ("MatMul", "Attention"):
        assert {dtype for node in dtypes(model, op) for dtype in node} <= {HALF, DataType.BOOL}
    for *inputs, _, state in dtypes(model, "LinearAttention"):
        assert [inputs[3], state] == [FULL, FULL]
        assert {*inputs[:3], *inputs[4:]} == {HALF}
    assert {dtype for node in dtypes(model, "CausalConvWithState") for dtype in node} == {HALF}
    assert {dtype for node in dtypes(model, "TensorScatter") for dtype in node} == {
        HALF,
        DataType.INT64,
    }
    for op in ("RMSNormalization", "Softplus", "Sigmoid", "RotaryEmbedding"):
        assert dtypes(model, op)
        assert HALF not in {dtype for node in dtypes(model, op) for dtype in node}
    by_name = {value.name: value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    for spec in context.states:
        wanted = FULL if spec.layout is Layout.RECURRENT else HALF
        assert (by_name[spec.input], by_name[spec.output]) == (wanted, wanted)
    assert by_name["logits"] is FULL


def test_its_steps_are_those_of_fp32_to_the_precision_of_fp16(
    stepped: tuple[ir.Model, Context],
) -> None:
    """Two steps, the second with the states that the first left."""
    model, context = stepped[0].clone(), stepped[1]
    TrtHalf().run(model, context)
    found = []
    for graph, dtype in ((stepped[0], "float32"), (model, "float16")):
        states = dict(first_states([s.stored_in(dtype) for s in context.states], 1, 8))
        outputs = []
        for past, ids in enumerate(np.arange(8).reshape(2, 1, 4)):
            given = {"input_ids": ids, "past_length": np.array([4 * past])}
            results = evaluate.run(graph, {**given, **states})
            states = {spec.input: results[spec.output] for spec in context.states}
            outputs.append(results["logits"])
        found.append(np.concatenate(outputs, 1))

    wanted, got = found
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert 0 < error < 5e-3


def test_weights_are_written_once_in_fp16_and_moved_so() -> None:
    """A tied table is one; no weight is cast while the engine runs."""
    model = ir.from_onnx_text(f"""{HEAD}
        g (int64[batch, time] ids) => (float[batch, time, 31] y)
        <float[31, 8] w = {{{", ".join(["0.5"] * 248)}}}> {{
            x = Gather (w, ids)
            turned = Transpose <perm = [1, 0]> (w)
            y = MatMul (x, turned)
        }}
    """)
    inferred(model)
    pipeline.run(model, [TrtHalf(), *pipeline.lowering("trt")[-1:]], Context())

    assert [v.dtype for v in model.graph.initializers.values()] == [HALF]
    assert [node.op_type for node in model.graph] == ["Gather", "Transpose", "MatMul", "Cast"]
    assert model.graph.outputs[0].name == "y"


def test_a_weight_that_fp16_does_not_hold_is_refused() -> None:
    """By its name, with what to do."""
    with pytest.raises(PassError, match=r"w has an entry of 7e\+04, .* 65504\. Export with --dtyp"):
        halved("""
            g (float[batch, 2] x) => (float[batch, 1] y) <float[2, 1] w = {70000.0, 1.0}> {
                y = MatMul (x, w)
            }
        """)


def test_what_a_loop_captures_stays_in_fp32() -> None:
    """Its body knows nothing of it; the value is cast where it is made."""
    model, _ = halved("""
        g (float[2, 2] x, bool c) => (float[2, 2] y) {
            p = MatMul (x, x)
            y = If (c) <
                then_branch = t () => (float[2, 2] a) { q = Transpose (p)  a = MatMul (q, x) },
                else_branch = e () => (float[2, 2] b) { b = Neg (p) }
            >
        }
    """)

    assert sorted(dtypes(model, "MatMul"), key=str) == [(FULL,) * 3, (HALF,) * 3]
    assert dtypes(model, "Transpose") == dtypes(model, "Neg") == [(FULL, FULL)]
    x = np.array([[1, 2], [3, 4]], np.float32)
    for condition, wanted in ((True, (x @ x).T @ x), (False, -(x @ x))):
        (got,) = evaluate.run(model, {"x": x, "c": np.array(condition)}).values()
        assert np.array_equal(got, wanted)


def test_what_steps_would_enlarge_is_in_fp32_with_all_that_it_needs() -> None:
    """Products before a piecewise linear recurrence, but not those of what it gives."""
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 24, "intaglio" : 1]>
        g (float[1, time, 2] x) => (float[1, time, 2] y)
        <float[2, 2] w = {0.5, 0.25, 2.0, 1.0}, float[2] a = {0.5, 0.25}> {
            drive = MatMul (x, w)
            z, state = intaglio.PiecewiseLinearRNN <num_relu = 1> (drive, a, w, a)
            y = MatMul (z, w)
        }
    """)
    inferred(model)
    for node in model.graph:
        for value in node.outputs:
            value.type = ir.TensorType(FULL)
    TrtHalf().run(model, Context())

    assert sorted(dtypes(model, "MatMul"), key=str) == [(FULL,) * 3, (HALF,) * 3]
    ((*read, _),) = dtypes(model, "PiecewiseLinearRNN")
    assert read == [FULL] * 5
