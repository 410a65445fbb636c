"""OrtPackedHeads: attention takes projections as they are, rotated or not."""

import onnx_ir as ir

from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.exact.remove_dead import RemoveDead
from intaglio.passes.lower.ort_group_query_attention import OrtGroupQueryAttention
from intaglio.passes.lower.ort_packed_heads import OrtPackedHeads
from intaglio.state import Layout, StateSpec

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 32] q, float[batch, time, 16] k, float[batch, time, 16] v,
       float[batch, time, 4] cos, float[batch, time, 4] sin, int64[batch] past_length,
       float[batch, 2, capacity, 8] past_k, float[batch, 2, capacity, 8] past_v)
      => (float[batch, time, 32] y, float[batch, 2, capacity, 8] new_k,
          float[batch, 2, capacity, 8] new_v)
      <float[batch, time, 4, 8] q4, float[batch, time, 2, 8] k4, float[batch, time, 2, 8] v4,
       float[batch, 4, time, 8] qt, float[batch, 2, time, 8] kt, float[batch, 2, time, 8] vt,
       float[batch, 4, time, 8] qr, float[batch, 2, time, 8] kr,
       float[batch, 4, time, 8] z, float[batch, time, 4, 8] zt>
    {
      four = Constant <value_ints = [0, 0, 4, 8]> ()
      two = Constant <value_ints = [0, 0, 2, 8]> ()
      flat = Constant <value_ints = [0, 0, 32]> ()
      q4 = Reshape (q, four)
      k4 = Reshape (k, two)
      v4 = Reshape (v, two)
      qt = Transpose <perm = [0, 2, 1, 3]> (q4)
      kt = Transpose <perm = [0, 2, 1, 3]> (k4)
      vt = Transpose <perm = [0, 2, 1, 3]> (v4)
      qr = RotaryEmbedding (qt, cos, sin)
      kr = RotaryEmbedding <interleaved = 1> (kt, cos, sin)
      count = Shape <start = 1, end = 2> (q)
      total = Add (past_length, count)
      new_k = TensorScatter <axis = 2> (past_k, kr, past_length)
      new_v = TensorScatter <axis = 2> (past_v, vt, past_length)
      z = Attention <is_causal = 1> (qr, new_k, new_v, , , , total)
      zt = Transpose <perm = [0, 2, 1, 3]> (z)
      y = Reshape (zt, flat)
    }
"""


def lowered(text: str, *, batch: int | None = 1) -> tuple[ir.Model, list[pipeline.PassRecord]]:
    """The graph of `text` with fused attention, its heads packed, checked."""
    states = [
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
    model = ir.from_onnx_text(text)
    steps = [OrtGroupQueryAttention(), OrtPackedHeads(), RemoveDead()]
    context = Context(states=states, batch=batch)
    return model, pipeline.run(model, steps, context, check=True)


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_nothing_is_turned_around_attention() -> None:
    model, records = lowered(TEXT)

    assert records[1].result.changed
    assert not {"Transpose", "Reshape"} & set(kinds(model))
    rotary = [node for node in model.graph if node.op_type == "RotaryEmbedding"]
    assert [node.attributes["num_heads"].value for node in rotary] == [4, 2]
    assert "interleaved" in rotary[1].attributes  # what else is said of a rotation is kept


def test_what_is_normalised_by_head_before_it_is_rotated_stays_cut_into_heads() -> None:
    """As in Qwen3: the norm sees heads, attention takes its result side by side."""
    text = TEXT.replace("q4 = Reshape (q, four)", "qq = Reshape (q, four) q4 = Relu (qq)")
    model, records = lowered(text)

    assert records[1].result.changed
    assert "Transpose" not in kinds(model)
    assert kinds(model).count("Reshape") == 2  # into heads, and back


def test_a_result_that_others_take_by_head_is_still_given_so() -> None:
    """The Transpose of attention's result stays for whoever else takes it."""
    text = TEXT.replace("new_v)\n      <", "new_v, float[batch, 4, time, 8] w)\n      <")
    model, records = lowered(text.replace("zt = T", "w = Relu (z) zt = T"))

    assert records[1].result.changed
    assert kinds(model).count("Transpose") == 1


def test_nothing_is_turned_around_a_branch_with_attention() -> None:
    """Where rows may be several; the other branch turns what it takes itself."""
    model, records = lowered(TEXT, batch=None)

    assert records[1].result.changed
    assert not {"Transpose", "Reshape"} & set(kinds(model))
    assert kinds(model).count("If") == 1


def test_a_second_run_changes_nothing() -> None:
    model, _ = lowered(TEXT)

    assert not OrtPackedHeads().run(model, Context(batch=1)).changed
