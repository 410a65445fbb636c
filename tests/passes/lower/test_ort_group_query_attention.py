"""OrtGroupQueryAttention: used where the batch is one, and in a branch elsewhere."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.exact.remove_dead import RemoveDead
from intaglio.passes.lower.ort_group_query_attention import OrtGroupQueryAttention
from intaglio.state import Layout, StateSpec

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, 4, time, 8] q, float[batch, 2, time, 8] k, int64[batch] past_length,
       float[batch, 2, capacity, 8] past_k, float[batch, 2, capacity, 8] past_v)
      => (float[batch, 4, time, 8] y, float[batch, 2, capacity, 8] new_k,
          float[batch, 2, capacity, 8] new_v)
    {
      count = Shape <start = 2, end = 3> (q)
      total = Add (past_length, count)
      new_k = TensorScatter <axis = 2> (past_k, k, past_length)
      new_v = TensorScatter <axis = 2> (past_v, k, past_length)
      y = Attention <is_causal = 1> (q, new_k, new_v, , , , total)
    }
"""


def caches() -> list[StateSpec]:
    return [
        StateSpec(
            input=f"past_{port[0]}",
            output=f"new_{port[0]}",
            dtype="float32",
            shape=("batch", 2, "capacity", 8),
            layout=Layout.STATIC,
            axis=2,
            op="attention",
            port=port,
            module="",
            layer=0,
            call=0,
        )
        for port in ("key", "value")
    ]


@pytest.mark.parametrize("batch", [1, 2, None])
def test_the_fused_kernel_stands_in_a_branch_where_rows_may_be_several(batch: int | None) -> None:
    """Its CPU kernel refuses several tokens with a past in larger batches, which the check runs."""
    model = ir.from_onnx_text(TEXT)
    context = Context(states=caches(), batch=batch)
    [record] = pipeline.run(model, [OrtGroupQueryAttention(), RemoveDead()], context, check=True)[
        :1
    ]
    assert record.error is not None
    kinds = {node.op_type for node in model.graph}
    assert ("GroupQueryAttention" in kinds, "If" in kinds) == (batch == 1, batch != 1)
    assert not kinds & {"Attention", "TensorScatter"}


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("is_causal = 1", "is_causal = 0"),
        ("is_causal = 1", "is_causal = 1, qk_matmul_output_mode = 1"),
        ("is_causal = 1", "is_causal = 1, scale = 0.0"),
        ("float[", "double["),
        ("float[", "bfloat16["),
        ("<axis = 2>", '<axis = 2, mode = "circular">'),
        ("(past_v, k, past_length)", "(past_v, k, count)"),
        ("(past_length, count)", "(count, count)"),
        ("(past_length, count)", "(past_length, past_length)"),
        ("start = 2, end = 3", "start = 1, end = 2"),
        ("float[batch, 4, time, 8] q", "float[batch, 4, last, 8] q"),
    ],
)
def test_what_the_fused_kernel_does_not_compute_is_left(part: str, other: str) -> None:
    """Later tokens, other results, dtypes, places, ends and numbers of entries."""
    assert OrtGroupQueryAttention().run(ir.from_onnx_text(TEXT), Context(batch=1)).changed
    assert part in TEXT
    model = ir.from_onnx_text(TEXT.replace(part, other))
    assert not OrtGroupQueryAttention().run(model, Context(batch=1)).changed


def test_lengths_may_be_counted_where_a_token_has_several_entries() -> None:
    """Of a value that has all of them, divided by how many these are."""
    counted = "all = Shape <start = 0, end = 1> (long)\n two = Constant <value_ints = [2]> ()"
    text = TEXT.replace(
        "count = Shape <start = 2, end = 3> (q)", f"{counted}\n count = Div(all, two)"
    )
    for length, changed in (("2*time", True), ("3*time", False)):
        model = ir.from_onnx_text(text.replace("g (", "g (float[long] long, "))
        model.graph.inputs[0].shape = ir.Shape([length])
        assert OrtGroupQueryAttention().run(model, Context(batch=None)).changed == changed


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 5), (3, 1), (3, 5)])
@pytest.mark.parametrize("scale", ["", ", scale = 0.7, softcap = 3.0"])
def test_either_branch_writes_caches_in_place(rows: int, tokens: int, scale: str) -> None:
    """Whatever is bound as input and output is one memory, of rows with pasts of their own."""
    plain = ir.from_onnx_text(TEXT.replace("is_causal = 1", f"is_causal = 1{scale}"))
    model = plain.clone()
    pipeline.run(
        model, [OrtGroupQueryAttention(), RemoveDead()], Context(states=caches(), batch=None)
    )
    random = np.random.default_rng(rows)
    past = 2 + 3 * np.arange(rows)
    inputs: dict[str, Any] = {
        "q": random.standard_normal((rows, 4, tokens, 8), np.float32),
        "k": random.standard_normal((rows, 2, tokens, 8), np.float32),
        "past_length": past,
        "past_k": random.standard_normal((rows, 2, 16, 8), np.float32),
        "past_v": random.standard_normal((rows, 2, 16, 8), np.float32),
    }
    wanted = onnxruntime.InferenceSession(
        ir.to_proto(plain).SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, inputs)
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(a) for name, a in inputs.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y")
    for port in "kv":
        binding.bind_ortvalue_output(f"new_{port}", values[f"past_{port}"])
    session.run_with_iobinding(binding)
    np.testing.assert_allclose(binding.get_outputs()[0].numpy(), wanted[0], atol=2e-6)
    for row, before in enumerate(past):
        for name, new in zip(("past_k", "past_v"), wanted[1:], strict=True):
            end = before + tokens
            np.testing.assert_array_equal(inputs[name][row, :, :end], new[row, :, :end])
            np.testing.assert_array_equal(inputs[name][row, :, end:], new[row, :, end:])


def test_each_rate_of_tokens_has_its_own_branch() -> None:
    """Where one attention sees one token, another may see two."""
    cache = "float[batch, 2, capacity, 8]"
    inputs = (
        f"float[batch, 4, twice, 8] q2, float[batch, 2, twice, 8] k2, int64[batch] past2, {cache} p"
    )
    outputs = f"float[batch, 4, twice, 8] z, {cache} n, {cache} m"
    more = """
      count2 = Shape <start = 2, end = 3> (q2)
      total2 = Add (past2, count2)
      n = TensorScatter <axis = 2> (p, k2, past2)
      m = TensorScatter <axis = 2> (p, k2, past2)
      z = Attention <is_causal = 1> (q2, n, m, , , , total2)
    """
    text = TEXT.replace("g (", f"g ({inputs}, ").replace("=> (", f"=> ({outputs}, ")
    model = ir.from_onnx_text(f"{text[: text.rindex('}')]}{more}}}")
    OrtGroupQueryAttention().run(model, Context(states=caches(), batch=None))
    choices = [node.inputs[0] for node in model.graph if node.op_type == "If"]
    assert len(choices) == len(set(choices)) == 2


def test_what_else_reads_a_cache_may_lead_to_the_queries() -> None:
    """As where a first attention to the same keys is masked: the second cannot write them."""
    first = "seen = ReduceMax <keepdims = 0> (new_k)\n      asked = Mul (q, seen)"
    text = TEXT.replace("      y =", f"      {first}\n      y =").replace(
        "> (q, new_k", "> (asked, new_k"
    )
    model = ir.from_onnx_text(text)
    asked = next(node.outputs[0] for node in model.graph if node.op_type == "Mul")
    asked.dtype, asked.shape = ir.DataType.FLOAT, ir.Shape(["batch", 4, "time", 8])
    assert not OrtGroupQueryAttention().run(model, Context(batch=None)).changed
