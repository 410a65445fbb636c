"""past_length -> attention_mask: the input from which onnxruntime-genai tells a graph its lengths.

Its decoders get ``attention_mask`` int64 [batch, consumed and new tokens], ones where a token is.
The tokens that each row has consumed follow from it:

    past_length = ReduceSum(attention_mask, axis 1) - time

Everything else that genai feeds a decoder a step graph takes already: caches by the names
``past_key_values.%d.key``, written in place in one buffer of the longest sequence.
"""

import onnx_ir as ir

from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import Emitter
from intaglio.state import BATCH, PAST_LENGTH

MASK = "attention_mask"
TOTAL = "total"  # consumed and new tokens
INT64 = ir.DataType.INT64


class GenaiInputs(Lower):
    """Take the lengths from an attention mask, as onnxruntime-genai gives them."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Compute `past_length` from a new input `attention_mask`."""
        graph = model.graph
        length = next((v for v in graph.inputs if v.name == PAST_LENGTH), None)
        if length is None:
            return PassResult(changed=False)
        tokens = graph.inputs[0]
        emit = Emitter(graph[0], prefix=MASK)
        mask = ir.Value(name=MASK, type=ir.TensorType(INT64), shape=ir.Shape([BATCH, TOTAL]))
        total = emit("ReduceSum", [mask, emit.constant([1])], INT64, [BATCH], keepdims=0)
        new = emit("Shape", [tokens], INT64, [1], start=1, end=2)
        past = emit("Sub", [total, new], INT64, [BATCH])
        length.replace_all_uses_with(past)
        graph.inputs[graph.inputs.index(length)] = mask
        return PassResult(changed=True)
