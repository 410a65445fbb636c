"""Limits follow from what a graph rounds on the way to each output, and from nothing else."""

from dataclasses import replace

import onnx_ir as ir
import pytest

from intaglio.exporter.proving.rounding import EXACT, INT8, limits_of, rounds_activations
from intaglio.state import Layout, StateSpec

TEXT = """
<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>
g (float[2,2] x, float[2,2] past) => (float[2,2] before, float[2,2] y, float[2,2] present)
{{
  before = Add(x, x)
  {node}
  y = Mul(rounded, before)
  present = Add({left}, past)
}}
"""
IF = """ends = ReduceSum <keepdims = 0> (x)
  flag = Cast <to = 9> (ends)
  rounded = If (flag) <
    then_branch = t () => (float[2,2] a) { h = Cast <to = 10> (x) a = Cast <to = 1> (h) },
    else_branch = e () => (float[2,2] b) { b = Tanh(x) }>"""
STATE = StateSpec(
    input="past",
    output="present",
    dtype="float32",
    shape=("batch", 2),
    layout=Layout.RECURRENT,
    axis=None,
    op="rnn",
    port="h",
    module="",
    layer=0,
    call=0,
)


@pytest.mark.parametrize(
    ("node", "limit"),
    [
        ("rounded = Tanh(x)", EXACT),
        ("rounded = com.microsoft.MatMulNBits <accuracy_level = 4> (x, x, x)", INT8),
        ("rounded = com.microsoft.MatMulNBits <accuracy_level = 0> (x, x, x)", EXACT),
        ("half = Cast <to = 10> (x)\n  rounded = Cast <to = 1> (half)", 2e-2),
        ("half = Cast <to = 16> (x)\n  rounded = Cast <to = 1> (half)", 5e-2),
        (
            IF,
            2e-2,
        ),
    ],
)
def test_only_what_is_computed_from_rounded_values_is_granted_more(node: str, limit: float) -> None:
    graph = ir.from_onnx_text(TEXT.format(node=node, left="before")).graph

    assert limits_of(graph, [STATE]) == {"before": EXACT, "y": limit, "past": EXACT}
    assert rounds_activations(graph) == (limit == INT8 and "NBits" in node)


def test_what_a_state_holds_is_rounded_in_the_next_step() -> None:
    """An output computed from the state alone is, too."""
    node = "rounded = com.microsoft.MatMulNBits <accuracy_level = 4> (x, x, x)"
    text = TEXT.format(node=node, left="rounded").replace("Add(x, x)", "Add(past, past)")

    assert limits_of(ir.from_onnx_text(text).graph, [STATE]) == dict.fromkeys(
        ("before", "y", "past"), INT8
    )


def test_what_conditions_are_prepared_with_is_rounded_in_every_step() -> None:
    """A state that no step changes is as coarse as what makes it."""
    given = replace(STATE, output="", layout=Layout.PREPARED)
    text = TEXT.replace(", float[2,2] present)", ")").format(node="rounded = Tanh(past)", left="x")
    step = ir.from_onnx_text(text.replace("  present = Add(x, past)\n", "")).graph
    prepare = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>
        p (float[2,2] memory) => (float[2,2] past)
        { past = com.microsoft.MatMulNBits <accuracy_level = 4> (memory, memory, memory) }
    """).graph

    assert limits_of(step, [given]) == {"before": EXACT, "y": EXACT, "past": EXACT}
    assert limits_of(step, [given], prepare) == {"before": EXACT, "y": INT8, "past": INT8}


def test_a_dead_node_grants_nothing() -> None:
    """As one that was added to be counted would be."""
    node = "n = com.microsoft.MatMulNBits <accuracy_level = 4> (x, x, x)\n  rounded = Tanh(x)"
    graph = ir.from_onnx_text(TEXT.format(node=node, left="before")).graph

    assert set(limits_of(graph, [STATE]).values()) == {EXACT}
