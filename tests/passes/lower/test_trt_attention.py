"""TrtAttention: cached attention in one output, and masks that mean what the attributes meant."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from intaglio.passes.base import Context
from intaglio.passes.lower.trt_attention import TrtAttention
from intaglio.state import Layout, StateSpec

HEAD = '<ir_version: 10, opset_import: ["" : 24]>'
STATIC = f"""{HEAD}
    g (float[batch, 4, time, 8] q, float[batch, 2, time, 8] k, int64[batch] past_length,
       float[batch, 2, capacity, 8] past_k, float[batch, 2, capacity, 8] past_v)
      => (float[batch, 4, time, 8] y, float[batch, 4, time, 8] z,
          float[batch, 2, capacity, 8] new_k, float[batch, 2, capacity, 8] new_v)
    {{
      count = Shape <start = 2, end = 3> (q)
      total = Add (past_length, count)
      new_k = TensorScatter <axis = 2> (past_k, k, past_length)
      new_v = TensorScatter <axis = 2> (past_v, k, past_length)
      y = Attention <is_causal = 1, scale = 0.5> (q, new_k, new_v, , , , total)
      z = Attention <is_causal = 1> (q, new_k, new_v, , , , total)
    }}
"""
GROW = f"""{HEAD}
    g (float[batch, 4, time, 8] q, float[batch, 2, time, 8] k, bool[time, all] seen,
       float[batch, 2, past, 8] past_k, float[batch, 2, past, 8] past_v)
      => (float[batch, 4, time, 8] y, float[batch, 2, all, 8] new_k, float[batch, 2, all, 8] new_v)
    {{
      y, new_k, new_v = Attention <is_causal = 1> (q, k, k, MASK, past_k, past_v)
    }}
"""

Apply = Callable[..., ir.Model]


def caches(layout: Layout, symbol: str) -> list[StateSpec]:
    return [
        StateSpec(
            input=f"past_{port[0]}",
            output=f"new_{port[0]}",
            dtype="float32",
            shape=("batch", 2, symbol, 8),
            layout=layout,
            axis=2,
            op="attention",
            port=port,
            module="",
            layer=0,
            call=0,
        )
        for port in ("key", "value")
    ]


def attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Attention"]


def test_a_static_cache_is_masked_to_what_is_valid(apply: Apply) -> None:
    """Rows of unequal length; two layers share one mask; other attributes stay."""
    context = Context(states=caches(Layout.STATIC, "capacity"))
    model = apply(STATIC, TrtAttention(), context)

    first, second = attentions(model)
    assert first.inputs[3] is second.inputs[3]
    assert first.attributes.keys() == {"scale"}
    assert [len(node.inputs) for node in (first, second)] == [4, 4]


@pytest.mark.parametrize("width", [6, 10])
@pytest.mark.parametrize("scale", ["", "scale = 0.5, "])
def test_keys_and_values_get_one_width(apply: Apply, width: int, scale: str) -> None:
    """The importer takes no others; scores keep the scale that they had."""
    text = f"""{HEAD}
        g (float[batch, 4, time, 8] q, float[batch, 2, time, 8] k, float[batch, 2, time, {width}] v)
          => (float[batch, 4, time, {width}] y)
        {{
          y = Attention <{scale}is_causal = 1> (q, k, v)
        }}
    """
    model = apply(text, TrtAttention(), Context())

    (node,) = attentions(model)
    assert {v.shape[-1] for v in node.inputs[:3]} == {max(8, width)}  # type: ignore[index, union-attr]
    (result,) = model.graph.outputs
    assert (result.name, result.shape[-1]) == ("y", width)  # type: ignore[index]


def test_a_growing_cache_is_joined_and_masked(apply: Apply) -> None:
    """Causal to the lower right: a step of one token sees all that came before."""
    context = Context(states=caches(Layout.GROW, "past"))
    text = GROW.replace(", bool[time, all] seen", "").replace("MASK", "")
    model = apply(text, TrtAttention(), context)

    (node,) = attentions(model)
    assert len(node.outputs) == 1
    assert [v.producer().op_type for v in node.inputs[1:3]] == ["Concat", "Concat"]  # type: ignore[union-attr]
    assert [value.name for value in model.graph.outputs] == ["y", "new_k", "new_v"]


def test_attention_without_a_cache_stays() -> None:
    """As many queries as keys: upper left and lower right are one."""
    text = f"""{HEAD}
        g (float[batch, 4, time, 8] q) => (float[batch, 4, time, 8] y)
        {{ y = Attention <is_causal = 1> (q, q, q) }}
    """
    assert not TrtAttention().run(ir.from_onnx_text(text), Context()).changed


LOOP = """
      start = Constant <value = float[2] {0.0, 0.0}> ()
      rows = Constant <value = float[1, 2] {1.0, 2.0}> ()
      last, each = Scan <num_scan_inputs = 1, body = cell
        (float[2] h, float[2] t) => (float[2] n, float[2] o) { n = Add (h, t)  o = Identity (n) }
      > (start, rows)
    }
"""


@pytest.mark.parametrize("more", ["", "softcap = 2.0, "])
def test_attention_beside_a_loop_is_written_out(apply: Apply, more: str) -> None:
    """Heads that share keys see what they saw, in caches of both kinds."""
    growing = GROW.replace(", bool[time, all] seen", "").replace("MASK", "")
    for text, layout, symbol in (
        (STATIC, Layout.STATIC, "capacity"),
        (growing, Layout.GROW, "past"),
    ):
        inner = text.rstrip().removesuffix("}").replace("<is_causal", f"<{more}is_causal") + LOOP
        model = apply(inner, TrtAttention(), Context(states=caches(layout, symbol)))
        assert not attentions(model)
        assert [node.op_type for node in model.graph].count("Softmax") == inner.count("= Attention")


def test_attention_without_a_cache_is_written_out_beside_a_loop(apply: Apply) -> None:
    """As many queries as keys, as in models that take whole inputs."""
    text = f"""{HEAD}
        g (float[batch, 4, time, 8] q) => (float[batch, 4, time, 8] y)
        {{ y = Attention <is_causal = 1> (q, q, q) }}
    """
    model = apply(text.rstrip().removesuffix("}") + LOOP, TrtAttention(), Context())
    assert not attentions(model)
