"""Graphs that carry their own states become step graphs, or are refused with what to say."""

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.errors import PassError
from intaglio.passes import evaluate, pipeline
from intaglio.passes.base import Context, OwnState
from intaglio.passes.exact.carry_states import CarryStates

HEAD = '<ir_version: 10, opset_import: ["" : 27]>'
CELL = (
    HEAD
    + """
graph (float[batch, 4] x, float[1, batch, 4] h) => (float[batch, 4] y, float[1, batch, 4] n) {
    zero = Constant <value = int64[1] {0}> ()
    kept = Squeeze (h, zero)
    sum = Add (x, kept)
    y = Tanh (sum)
    n = Unsqueeze (y, zero)
}
"""
)


def carried(text: str, *own: OwnState) -> tuple[ir.Model, Context]:
    model, context = ir.from_onnx_text(text), Context(own=own)
    pipeline.run(model, [CarryStates()], context, check=True)
    return model, context


def test_a_cell_has_its_state_on_any_axis() -> None:
    _, context = carried(CELL, OwnState(input="h", output="n", initial=0.5))

    (spec,) = context.states
    assert (spec.input, spec.output, spec.shape, spec.rows) == ("h", "n", (1, "batch", 4), 1)
    assert spec.initial == 0.5
    assert context.batch is None


def test_an_initial_value_of_a_row_is_a_weight_that_new_rows_start_from() -> None:
    first = np.arange(4, dtype=np.float32).reshape(1, 1, 4)
    model, context = carried(CELL, OwnState(input="h", output="n", initial=first))

    assert context.states[0].initial == 0
    x, h = np.zeros((2, 4), np.float32), np.ones((1, 2, 4), np.float32)
    found = evaluate.run(model, {"x": x, "h": h, "past_length": np.array([0, 3])})
    np.testing.assert_allclose(found["y"], np.tanh([np.arange(4), np.ones(4)]), rtol=1e-6)


def test_where_all_outputs_are_states_they_are_returned_as_well() -> None:
    text = (
        HEAD
        + """
    graph (float[batch, 4] x, float[batch, 4] h) => (float[batch, 4] out) {
        sum = Add (x, h)
        out = Tanh (sum)
    }
    """
    )
    model, context = carried(text, OwnState(input="h", output="out"))

    assert [value.name for value in model.graph.outputs] == ["out", "h.next"]
    assert context.states[0].output == "h.next"


def test_rows_that_meet_are_refused() -> None:
    text = (
        HEAD
        + """
    graph (float[batch, 4] x, float[batch, 4] h) => (float[batch, 4] y, float[batch, 4] n) {
        axis = Constant <value = int64[1] {0}> ()
        mean = ReduceMean (x, axis)
        n = Add (h, mean)
        y = Tanh (n)
    }
    """
    )
    with pytest.raises(PassError, match=r"depends on the other rows|mixes the rows"):
        carried(text, OwnState(input="h", output="n"))


def test_a_sequence_in_parts_must_give_what_it_gives_at_once() -> None:
    text = (
        HEAD
        + """
    graph (float[batch, time] x, float[batch, 1] h) => (float[batch, time] y, float[batch, 1] n) {
        axis = Constant <value = int64[1] {1}> ()
        mean = ReduceMean (x, axis)
        n = Add (h, mean)
        y = Add (x, n)
    }
    """
    )
    with pytest.raises(PassError, match=r"in the parts .*--axes x:batchx16"):
        carried(text, OwnState(input="h", output="n"))


@pytest.mark.parametrize(
    ("after", "said"),
    [("float[batch, 5] n", "another shape"), ("double[batch, 4] n", "float64")],
)
def test_a_state_that_comes_back_otherwise_is_refused(after: str, said: str) -> None:
    make = "n = Concat <axis = 1> (h, one)" if "5" in after else "n = Cast <to = 11> (h)"
    text = (
        HEAD
        + f"""
    graph (float[batch, 4] x, float[batch, 4] h) => (float[batch, 4] y, {after}) {{
        y = Add (x, h)
        zero = Constant <value = int64[1] {{0}}> ()
        end = Constant <value = int64[1] {{1}}> ()
        one = Slice (h, zero, end, end)
        {make}
    }}
    """
    )
    with pytest.raises(PassError, match=said):
        carried(text, OwnState(input="h", output="n"))
