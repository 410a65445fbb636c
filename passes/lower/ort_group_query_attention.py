"""TensorScatter, TensorScatter, Attention -> com.microsoft::GroupQueryAttention, for batch 1.

GroupQueryAttention reads only the valid part of the buffer and writes it in place, which is faster
at long contexts.  Its CPU kernel refuses T > 1 with a past at batch sizes above one, and head sizes
that are no multiple of 8, so it serves graphs that are fixed to batch 1 and leaves others as they
are.
"""

import onnx_ir as ir

from intaglio.passes.base import Context, Lower, PassResult
from intaglio.passes.graph import Emitter, attribute, describe, dims, replace_uses
from intaglio.state import BATCH, TIME

INT32 = ir.DataType.INT32
DOMAIN = "com.microsoft"


class OrtGroupQueryAttention(Lower):
    """Use ONNX Runtime's fused cached attention where the batch size is fixed to one."""

    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Rewrite every attention over a static cache."""
        if context.batch != 1:
            return PassResult(changed=False, notes=["the batch size is not fixed to 1"])
        notes = []
        lengths: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        for node in list(model.graph):
            caches = _caches(node)
            if caches is None:
                continue
            total = node.inputs[6]
            assert total is not None
            if total not in lengths:
                lengths[total] = _lengths(total, Emitter(node))
            _fuse(node, caches, lengths[total])
            notes.append(describe(node))
        if notes:
            model.graph.opset_imports[DOMAIN] = 1
        return PassResult(changed=bool(notes), notes=notes)


def _caches(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The two TensorScatter nodes that feed an attention over a static cache of one head size."""
    if node.op_type != "Attention" or node.domain or len(node.inputs) < 7:
        return None
    scatters = [None if v is None else v.producer() for v in node.inputs[1:3]]
    if any(s is None or s.op_type != "TensorScatter" for s in scatters):
        return None
    key, value = scatters
    assert key is not None
    assert value is not None
    sizes = {(dims(s.outputs[0]) or ("?",))[-1] for s in (key, value)}
    size = sizes.pop()
    fits = not sizes and isinstance(size, int) and size % 8 == 0
    return (key, value) if fits and node.inputs[3] is None else None


def _lengths(total: ir.Value, emit: Emitter) -> tuple[ir.Value, ir.Value]:
    """(seqlens_k, total_sequence_length): the last valid index per row, the longest row."""
    valid = emit("Cast", [total], INT32, [BATCH], to=INT32)
    one = emit.constant(1, "int32")
    last = emit("Sub", [valid, one], INT32, [BATCH])
    longest = emit("ReduceMax", [valid], INT32, [], keepdims=0)
    return last, longest


def _fuse(
    node: ir.Node, caches: tuple[ir.Node, ir.Node], lengths: tuple[ir.Value, ir.Value]
) -> None:
    emit, old = Emitter(node), node.outputs[0]
    query = node.inputs[0]
    assert query is not None
    packed = [_pack(value, emit) for value in (query, *(cache.inputs[1] for cache in caches))]
    pasts = [cache.inputs[0] for cache in caches]
    heads, size = (dims(query) or ())[1], (dims(query) or ())[3]
    kv_heads = (dims(caches[0].outputs[0]) or ())[1]
    presents = [(cache.outputs[0].dtype, dims(cache.outputs[0])) for cache in caches]
    kept = {name: attribute(node, name) for name in ("scale", "softcap")}
    y, *new = emit.node(
        "GroupQueryAttention",
        [*packed, *pasts, *lengths],
        [(old.dtype, [BATCH, TIME, int(heads) * int(size)]), *presents],
        {
            "num_heads": int(heads),
            "kv_num_heads": int(kv_heads),
            **{name: float(number) for name, number in kept.items() if number},
        },
        domain=DOMAIN,
    )
    replace_uses(old, _unpack(y, int(heads), int(size), emit))
    for cache, present in zip(caches, new, strict=True):
        replace_uses(cache.outputs[0], present)


def _pack(value: ir.Value | None, emit: Emitter) -> ir.Value:
    """[batch, heads, time, size] -> [batch, time, heads * size]."""
    assert value is not None
    batch, heads, time, size = dims(value) or ()
    order = [batch, time, heads, size]
    turned = emit("Transpose", [value], value.dtype, order, perm=[0, 2, 1, 3])
    shape = emit.constant([0, 0, int(heads) * int(size)])
    return emit("Reshape", [turned, shape], value.dtype, [batch, time, int(heads) * int(size)])


def _unpack(value: ir.Value, heads: int, size: int, emit: Emitter) -> ir.Value:
    """[batch, time, heads * size] -> [batch, heads, time, size]."""
    shape = emit.constant([0, 0, heads, size])
    apart = emit("Reshape", [value, shape], value.dtype, [BATCH, TIME, heads, size])
    return emit("Transpose", [apart], value.dtype, [BATCH, heads, TIME, size], perm=[0, 2, 1, 3])
