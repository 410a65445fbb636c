"""Attention's mask in the size that ONNX Runtime's kernel takes: one row for each query.

The standard broadcasts a mask over queries, as one of padding is; the kernel reads beyond it or
refuses.
"""

import onnx_ir as ir

from intaglio.passes.base import Context, Lower, PassResult
from intaglio.passes.graph import Emitter, describe, dims, input_of

INT64 = ir.DataType.INT64


class OrtAttentionMask(Lower):
    """Repeat a mask that is the same for all queries for each of them."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Expand the masks whose last axis but one is 1."""
        notes = []
        expanded: dict[tuple[ir.Value, ir.Value], ir.Value] = {}
        for node in model.graph:
            mask = input_of(node, 3) if node.op_type == "Attention" and not node.domain else None
            query, shape = node.inputs[0] if mask is not None else None, dims(mask)
            if mask is None or query is None or shape is None or len(shape) < 2:
                continue
            rows, queries = shape[-2], dims(query)
            if queries is None or rows not in (1, "?"):
                continue
            axis = 2 if len(queries) == 4 else 1
            if queries[axis] == 1:
                continue
            if (mask, query) not in expanded:
                emit = Emitter(node)
                size = emit("Shape", [query], INT64, [1], start=axis, end=axis + 1)
                ones, one = emit.constant([1] * (len(shape) - 2)), emit.constant([1])
                parts = [ones, size, one] if len(shape) > 2 else [size, one]
                to = emit("Concat", parts, INT64, [len(shape)], axis=0)
                wide = [*shape[:-2], queries[axis], shape[-1]]
                expanded[mask, query] = emit("Expand", [mask, to], mask.dtype, wide)
            node.replace_input_with(3, expanded[mask, query])
            notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)
