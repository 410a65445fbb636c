"""OrtRelabel: opset 24 where nothing newer is used, the label as it is where something is."""

from collections.abc import Callable

import onnx_ir as ir

from intaglio.passes.base import Context
from intaglio.passes.lower.ort_relabel import OrtRelabel

TEXT = """
    <ir_version: 13, opset_import: ["" : 27]>
    g (float[batch, 2, time, 4] q) => (float[batch, 2, time, 4] y)
    { y = Attention <is_causal = 1%s> (q, q, q) }
"""


def test_the_label_goes_down_to_where_attention_has_a_kernel(
    apply: Callable[..., ir.Model],
) -> None:
    """Labelled 25 or later, ONNX Runtime inlines Attention and runs it several times slower."""
    assert apply(TEXT % "", OrtRelabel()).graph.opset_imports[""] == 24


def test_an_attribute_that_the_older_opset_lacks_keeps_the_label() -> None:
    """A window of Attention-25 would be lost without a word."""
    model = ir.from_onnx_text(TEXT % ", left_window_size = 3")
    result = OrtRelabel().run(model, Context())
    assert "left_window_size" in result.notes[0]
    assert model.graph.opset_imports[""] == 27
