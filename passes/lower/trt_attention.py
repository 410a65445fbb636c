"""Attention over a cache, in the forms that TensorRT's importer takes.

It takes Attention nodes with one output, and aligns `is_causal` to the upper left where there are
more keys than queries, while a step has to see all that came before.  So

* Attention(q, k, v, past_key, past_value) -> Concat, Concat, Attention with a mask
* causal Attention with `nonpad_kv_seqlen` (a static cache) -> Attention with a mask: key s of S is
  seen by query t of T where s <= valid - T + t
* keys and values of different widths -> the narrower filled with zeros: of queries and keys they
  add nothing to scores, of values they are cut off the result again
* beside a loop -> products and a softmax: the builder of TensorRT-RTX 1.7 ends with a fault of its
  own (SIGSEGV) where fused attention and a loop meet in a graph
"""

import onnx_ir as ir

from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import Emitter, attribute, describe, dims, input_of, replace_uses

BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64
PAST_KEY, PAST_VALUE, VALID = 4, 5, 6  # inputs of Attention
MASK = 3
LOOPS = ("Loop", "Scan")
LOWEST = -1e30  # of a score that weighs nothing

Key = tuple[ir.Value | None, str, str]


class TrtAttention(Lower):
    """Write cached attention as TensorRT imports it: joined caches and masks that are computed."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite every attention with a cache; masks are shared between layers."""
        masks: dict[Key, ir.Value] = {}
        notes = []
        loops = any(node.op_type in LOOPS for node in model.graph)
        for node in list(model.graph):
            if node.op_type != "Attention" or node.domain:
                continue
            joined = _join(node)
            valid = input_of(node, VALID)
            cached = joined or valid is not None
            masked = bool(attribute(node, "is_causal", 0)) and (cached or (loops and _square(node)))
            if masked:
                _mask(node, valid, masks)
            written = loops and _write_out(node)
            evened = not written and _even(node)
            if joined or masked or evened or written:
                notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)


def _join(node: ir.Node) -> bool:
    """Take the past out of an attention: its keys and values are joined before it."""
    pasts = [input_of(node, index) for index in (PAST_KEY, PAST_VALUE)]
    if pasts[0] is None:
        return False
    emit = Emitter(node)
    for index, past in enumerate(pasts, start=1):
        new, old = node.inputs[index], node.outputs[index]
        assert new is not None
        joined = emit("Concat", [past, new], new.dtype, dims(old), axis=2)
        node.replace_input_with(index, joined)
        node.replace_input_with(PAST_KEY + index - 1, None)
        replace_uses(old, joined)
    node.resize_outputs(1)
    return True


def _square(node: ir.Node) -> bool:
    """Whether there are as many keys as queries: the upper left and the lower right are one."""
    query, key = (dims(value) or () for value in node.inputs[:2])
    return len(query) == len(key) == 4 and query[2] == key[2] != "?"


def _write_out(node: ir.Node) -> bool:
    """Products and a softmax for an attention over [batch, heads, time, width] with a mask."""
    query, key, value = node.inputs[:3]
    if query is None or key is None or value is None:
        return False
    shapes = [list(dims(each) or ()) for each in (query, key, value)]
    if any(len(shape) != 4 or "?" in shape for shape in shapes) or attribute(node, "is_causal", 0):
        return False
    (rows, heads, time, width), (_, shared, length, _), (*_, size) = shapes
    if not all(isinstance(each, int) for each in (heads, shared, width, size)):
        return False
    emit, kind, result = Emitter(node), query.dtype, node.outputs[0]
    repeats = int(heads) // int(shared)
    if repeats > 1:
        key, value = (_repeated(emit, each, repeats) for each in (key, value))
    factor = attribute(node, "scale") or int(width) ** -0.5
    scaled = emit("Mul", [query, emit.constant(factor, "float32")], kind, shapes[0])
    turned = emit("Transpose", [key], kind, [rows, heads, width, length], perm=[0, 1, 3, 2])
    whole = [rows, heads, time, length]
    scores = emit("MatMul", [scaled, turned], kind, whole)
    if cap := attribute(node, "softcap", 0.0):
        limit = emit.constant(cap, "float32")
        scores = emit("Tanh", [emit("Div", [scores, limit], kind, whole)], kind, whole)
        scores = emit("Mul", [scores, limit], kind, whole)
    mask = input_of(node, MASK)
    if mask is not None and mask.dtype is BOOL:
        scores = emit("Where", [mask, scores, emit.constant(LOWEST, "float32")], kind, whole)
    elif mask is not None:
        scores = emit("Add", [scores, mask], kind, whole)
    weights = emit("Softmax", [scores], kind, whole, axis=-1)
    replace_uses(result, emit("MatMul", [weights, value], kind, dims(result)))
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    return True


def _repeated(emit: Emitter, value: ir.Value, repeats: int) -> ir.Value:
    """[batch, heads, time, width] with each head as often as queries share it."""
    rows, heads, time, width = dims(value) or ()
    apart = emit(
        "Unsqueeze", [value, emit.constant([2])], value.dtype, [rows, heads, 1, time, width]
    )
    parts = [apart] * repeats
    joined = emit("Concat", parts, value.dtype, [rows, heads, repeats, time, width], axis=2)
    sizes = emit.constant([0, int(heads) * repeats, -1, int(width)])
    return emit("Reshape", [joined, sizes], value.dtype, [rows, int(heads) * repeats, time, width])


def _even(node: ir.Node) -> bool:
    """Let keys and values [batch, heads, time, width] have one width."""
    shapes = [dims(value) or () if value is not None else () for value in node.inputs[:3]]
    widths = [shape[-1] if len(shape) == 4 else None for shape in shapes]
    key, value = widths[1:]
    if not isinstance(key, int) or not isinstance(value, int) or key == value:
        return False
    if attribute(node, "scale") is None:
        node.attributes["scale"] = ir.AttrFloat32("scale", key**-0.5)
    if key < value:
        for index in (0, 1):
            _fill(node, index, value - key)
        return True
    _fill(node, 2, key - value)
    result, emit = node.outputs[0], Emitter(node)
    whole = [(result.dtype, [*(dims(result) or ())[:-1], key])]
    (wide,) = emit.node("Attention", list(node.inputs), whole, node.attributes)
    ends = [emit.constant([end]) for end in (0, value, -1)]
    replace_uses(result, emit("Slice", [wide, *ends], result.dtype, dims(result)))
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    return True


def _fill(node: ir.Node, index: int, more: int) -> None:
    """Put zeros behind the last axis of an input."""
    given = node.inputs[index]
    assert given is not None
    *shape, width = dims(given) or ()
    assert isinstance(width, int)
    emit = Emitter(node)
    pads = emit.constant([0] * 7 + [more])
    node.replace_input_with(index, emit("Pad", [given, pads], given.dtype, [*shape, width + more]))


def _mask(node: ir.Node, valid: ir.Value | None, masks: dict[Key, ir.Value]) -> None:
    """Give a causal attention the mask that it and `valid` [B] stand for."""
    query, keys = node.inputs[0], node.inputs[1]
    lengths = str((dims(query) or ())[2]), str((dims(keys) or ())[2])
    key = (valid, *lengths)
    if key not in masks:
        masks[key] = _allowed(node, valid)
    mask = masks[key]
    given = input_of(node, MASK)
    emit = Emitter(node)
    if given is not None and given.dtype is BOOL:
        mask = emit("And", [given, mask], BOOL, None)
    elif given is not None:
        lowest = emit.constant(LOWEST, "float32")
        mask = emit("Where", [mask, given, lowest], given.dtype, None)
    node.resize_inputs(MASK + 1)
    node.replace_input_with(MASK, mask)
    node.attributes.pop("is_causal", None)


def _allowed(node: ir.Node, valid: ir.Value | None) -> ir.Value:
    """Which keys each query may see, bool [B, 1, T, S] ([1, 1, T, S] without `valid`)."""
    emit = Emitter(node)
    zero, one = emit.constant(0), emit.constant(1)
    T, S = (
        emit(
            "Squeeze",
            [emit("Shape", [node.inputs[index]], INT64, [1], start=2, end=3), emit.constant([0])],
            INT64,
            [],
        )
        for index in (0, 1)
    )
    times, places = (emit("Range", [zero, n, one], INT64, None) for n in (T, S))
    end = S
    if valid is not None:
        end = emit("Reshape", [valid, emit.constant([-1, 1, 1, 1])], INT64, None)
    first = emit("Sub", [end, T], INT64, None)
    rows = emit("Reshape", [times, emit.constant([1, 1, -1, 1])], INT64, None)
    last = emit("Add", [first, rows], INT64, None)
    columns = emit("Reshape", [places, emit.constant([1, 1, 1, -1])], INT64, None)
    return emit("LessOrEqual", [columns, last], BOOL, None)
