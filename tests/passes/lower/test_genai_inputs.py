"""Lengths from an attention mask: the same results as with lengths given."""

import numpy as np
import onnx_ir as ir

from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.lower.genai_inputs import MASK, GenaiInputs

TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
agraph (int64[batch,time] input_ids, int64[batch] past_length) => (int64[batch,time] y)
<int64[1] one = {1}>
{
    length = Unsqueeze(past_length, one)
    y = Add(input_ids, length)
}
"""


def test_the_tokens_consumed_are_those_of_the_mask_less_the_new_ones() -> None:
    """Rows of different lengths, several new tokens, one, and none before them."""
    model = ir.from_onnx_text(TEXT)
    result = GenaiInputs().run(model, Context())

    assert result.changed
    assert [v.name for v in model.graph.inputs] == ["input_ids", MASK]
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    for time, past in ((1, [4, 2]), (3, [2, 0])):
        ids = np.zeros((2, time), np.int64)
        found = evaluate.run(model, {"input_ids": ids, MASK: mask})["y"]
        assert found[:, 0].tolist() == past


def test_a_graph_without_lengths_stays_as_it_is() -> None:
    model = ir.from_onnx_text(TEXT.replace(", int64[batch] past_length", "").replace(
        "Unsqueeze(past_length, one)", "Identity(one)"
    ))  # fmt: skip

    assert not GenaiInputs().run(model, Context()).changed
    assert not GenaiInputs().run(model, Context()).changed
