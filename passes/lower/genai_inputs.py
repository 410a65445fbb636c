"""past_length -> what onnxruntime-genai gives instead, from which a graph tells its lengths.

A decoder gets ``attention_mask`` int64 [batch, consumed and new tokens], ones where a token is:

    past_length = ReduceSum(attention_mask, axis 1) - time

One of speech gets ``past_sequence_length`` int32 [1], the same for all rows:

    past_length = Expand(past_sequence_length, batch)

Everything else that genai feeds a decoder a step graph takes already: caches by the names
``past_key_values.%d.key``, written in place in one buffer of the longest sequence.
"""

import onnx_ir as ir

from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import Emitter
from intaglio.state import BATCH, PAST_LENGTH

MASK = "attention_mask"
COUNT = "past_sequence_length"
TOTAL = "total"  # consumed and new tokens
INT64 = ir.DataType.INT64


class GenaiInputs(Lower):
    """Take the lengths as onnxruntime-genai gives them.

    `speech` takes them as one number for all rows, else from an attention mask.
    """

    speech: bool = False

    def rewrite(self, model: ir.Model) -> PassResult:
        """Compute `past_length` from a new input."""
        graph = model.graph
        length = next((v for v in graph.inputs if v.name == PAST_LENGTH), None)
        if length is None:
            return PassResult(changed=False)
        emit = Emitter(graph[0], prefix=COUNT if self.speech else MASK)
        given, past = (_counted if self.speech else _masked)(emit, graph.inputs[0])
        length.replace_all_uses_with(past)
        graph.inputs[graph.inputs.index(length)] = given
        return PassResult(changed=True)


def _masked(emit: Emitter, tokens: ir.Value) -> tuple[ir.Value, ir.Value]:
    mask = ir.Value(name=MASK, type=ir.TensorType(INT64), shape=ir.Shape([BATCH, TOTAL]))
    total = emit("ReduceSum", [mask, emit.constant([1])], INT64, [BATCH], keepdims=0)
    new = emit("Shape", [tokens], INT64, [1], start=1, end=2)
    return mask, emit("Sub", [total, new], INT64, [BATCH])


def _counted(emit: Emitter, tokens: ir.Value) -> tuple[ir.Value, ir.Value]:
    count = ir.Value(name=COUNT, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape([1]))
    past = emit("Cast", [count], INT64, [1], to=INT64)
    rows = emit("Shape", [tokens], INT64, [1], start=0, end=1)
    return count, emit("Expand", [past, rows], INT64, [BATCH])
