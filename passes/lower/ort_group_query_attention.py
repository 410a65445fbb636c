"""TensorScatter, TensorScatter, Attention -> com.microsoft::GroupQueryAttention.

GroupQueryAttention reads only the valid part of the buffer and writes it in place, where Attention
computes with all that the buffer has room for.  Its CPU kernel refuses several tokens with a past
in several rows, and head sizes that are no multiple of 8.  So where the batch is not fixed to 1 a
branch is taken by the sizes of the call:

    y   ->   if min(batch, time) == 1: GroupQueryAttention  else: TensorScatter, Attention

Either writes the cache where the runtime has bound it: a branch gives its outputs the memory of the
graph's.
"""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from intaglio.passes.base import Context, Lower, PassResult
from intaglio.passes.graph import (
    Emitter,
    Shape,
    attribute,
    attributes_of,
    describe,
    dims,
    integers,
    producer,
    replace_uses,
)
from intaglio.state import BATCH, TIME

BOOL, INT32, INT64 = ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64
DOMAIN = "com.microsoft"
KERNELS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)  # that it has, for CPUs


class OrtGroupQueryAttention(Lower):
    """Use ONNX Runtime's fused cached attention, in steps of one token or one row."""

    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Rewrite every attention over a static cache."""
        notes = []
        lengths: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        fitting: dict[ir.Value, ir.Value] = {}
        order = {node: place for place, node in enumerate(model.graph)}
        for node in order:
            caches = _caches(node)
            if caches is None or not _first(node, caches, order):
                continue
            total = node.inputs[6]
            assert total is not None
            if total not in lengths:
                lengths[total] = _lengths(total, Emitter(node))
            given = (node.inputs[0], *(cache.inputs[1] for cache in caches))
            packed = [_pack(value, Emitter(node)) for value in given]
            if total not in fitting and context.batch != 1:  # layers at another rate have their own
                fitting[total] = _fits(packed[0], Emitter(node))
            _fuse(model.graph, node, caches, packed, lengths[total], fitting.get(total))
            notes.append(describe(node))
        if notes:
            model.graph.opset_imports[DOMAIN] = 1
        return PassResult(changed=bool(notes), notes=notes)


def _caches(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The two TensorScatter nodes that feed an attention over a static cache of one head size.

    GroupQueryAttention writes new entries, as many as there are queries, in front of the end that
    it is told: so must they have, at the same place.
    """
    if node.op_type != "Attention" or node.domain or len(node.inputs) < 7:
        return None
    told = attributes_of(node)
    if not told.get("is_causal") or not told.keys() <= {"is_causal", "scale", "softcap"}:
        return None
    if "scale" in told and not told["scale"] > 0:  # none means what the size of heads says
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
    fits = fits and node.inputs[0] is not None and node.inputs[0].dtype in KERNELS
    return (key, value) if fits and node.inputs[3] is None and _ends(node, key, value) else None


def _first(node: ir.Node, caches: Sequence[ir.Node], order: Mapping[ir.Node, int]) -> bool:
    """Whether nothing that may lead to the attention reads what it will write instead."""
    users = (user for cache in caches for user, _ in cache.outputs[0].uses())
    return all(user in order and order[user] >= order[node] for user in users)


def _ends(node: ir.Node, *caches: ir.Node) -> bool:
    """Whether entries of as many as the queries are written right before the end of the cache."""
    length = _entries(node.inputs[0])
    starts = {cache.inputs[2] for cache in caches}
    if None in starts or len(starts) > 1 or any(_entries(c.inputs[1]) != length for c in caches):
        return False
    if any(attribute(cache, "mode") not in (None, "linear") for cache in caches):
        return False
    end = producer(node.inputs[6], "Add")
    if end is None or not starts <= {*end.inputs}:
        return False
    [count] = {*end.inputs} - starts or {None}
    if integers(count) == [length]:
        return True
    each, part = 1, producer(count, "Div")
    if part is not None:  # of a value that has several entries for each
        each, count = (integers(part.inputs[1]) or [0])[0], part.inputs[0]
    shape = producer(count, "Shape")
    sizes = None if shape is None else dims(shape.inputs[0])
    if shape is None or sizes is None:
        return False
    start, stop = attribute(shape, "start", 0), attribute(shape, "end", len(sizes))
    return [*sizes[start:stop]] == [length if each == 1 else f"{each}*{length}"]


def _entries(value: ir.Value | None) -> int | str | None:
    """How many, of [batch, heads, entries, size]."""
    sizes = dims(value)
    return sizes[2] if sizes is not None and len(sizes) == 4 else None


def _lengths(total: ir.Value, emit: Emitter) -> tuple[ir.Value, ir.Value]:
    """(seqlens_k, total_sequence_length): the last valid index per row, the longest row."""
    valid = emit("Cast", [total], INT32, [BATCH], to=INT32)
    one = emit.constant(1, "int32")
    last = emit("Sub", [valid, one], INT32, [BATCH])
    longest = emit("ReduceMax", [valid], INT32, [], keepdims=0)
    return last, longest


def _fits(packed: ir.Value, emit: Emitter) -> ir.Value:
    """Whether a call has one row, or one token of each: of values [batch, time, ...]."""
    sizes = emit("Shape", [packed], INT64, [2], start=0, end=2)
    least = emit("ReduceMin", [sizes], INT64, [1])
    return emit("Equal", [least, emit.constant([1])], BOOL, [1])


def _fuse(
    graph: ir.Graph,
    node: ir.Node,
    caches: tuple[ir.Node, ir.Node],
    packed: list[ir.Value],
    lengths: tuple[ir.Value, ir.Value],
    fits: ir.Value | None,
) -> None:
    """Exchange an attention, in a branch that `fits` chooses where that is given."""
    emit, old = Emitter(node), node.outputs[0]
    heads, size = _heads(node.inputs[0])
    time = _entries(node.inputs[0])
    assert time is not None
    kv_heads, _ = _heads(caches[0].outputs[0])
    shapes: list[tuple[ir.DataType | None, Shape | None]] = [
        (old.dtype, [BATCH, time, heads * size]),
        *((cache.outputs[0].dtype, dims(cache.outputs[0])) for cache in caches),
    ]
    inputs = [*packed, *(cache.inputs[0] for cache in caches), *lengths]
    kept = {name: attribute(node, name) for name in ("scale", "softcap")}
    attributes = {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        **{name: float(number) for name, number in kept.items() if number},
    }
    if fits is None:
        y, *new = emit.node("GroupQueryAttention", inputs, shapes, attributes, domain=DOMAIN)
    else:
        imports = {**graph.opset_imports, DOMAIN: 1}
        fused = ir.node(
            "GroupQueryAttention", inputs, attributes, domain=DOMAIN,
            outputs=_values(f"{node.name}/one", shapes), name=f"{node.name}/one",
        )  # fmt: skip
        one = ir.Graph([], fused.outputs, nodes=[fused], opset_imports=imports, name="one")
        many = ir.Graph([], [], nodes=[], opset_imports=imports, name="many")
        _attend(many, node, caches, packed, _values(f"{node.name}/many", shapes[:1]))
        for each in (*one, *many):
            each.metadata_props.update(node.metadata_props)
        y, *new = emit.node("If", [fits], shapes, {"then_branch": one, "else_branch": many})
    replace_uses(old, _unpack(y, heads, size, emit))
    for cache, present in zip(caches, new, strict=True):
        replace_uses(cache.outputs[0], present)


def _values(
    prefix: str, shapes: Sequence[tuple[ir.DataType | None, Shape | None]]
) -> list[ir.Value]:
    return [
        ir.Value(
            name=f"{prefix}.{index}",
            type=None if dtype is None else ir.TensorType(dtype),
            shape=None if shape is None else ir.Shape(list(shape)),
        )
        for index, (dtype, shape) in enumerate(shapes)
    ]


def _attend(
    many: ir.Graph,
    node: ir.Node,
    caches: tuple[ir.Node, ir.Node],
    packed: list[ir.Value],
    outputs: list[ir.Value],
) -> None:
    """Put the same attention of `packed` queries, keys and values into the empty graph `many`."""
    heads, size = _heads(node.inputs[0])
    end = ir.node("Reshape", [None, None], outputs=outputs, name=f"{node.name}/many")
    many.append(end)
    emit, old = Emitter(end, f"{node.name}/many"), node.outputs[0]
    query = _unpack(packed[0], heads, size, emit)
    written: list[ir.Value] = []
    for cache, value in zip(caches, packed[1:], strict=True):
        new = _unpack(value, *_heads(cache.inputs[1]), emit)
        shape = [(cache.outputs[0].dtype, dims(cache.outputs[0]))]
        inputs = [cache.inputs[0], new, *cache.inputs[2:]]
        written += emit.node("TensorScatter", inputs, shape, attributes_of(cache))
    inputs = [query, *written, *node.inputs[3:]]
    [found] = emit.node("Attention", inputs, [(old.dtype, dims(old))], attributes_of(node))
    order: Shape = [BATCH, _entries(query) or TIME, heads, size]
    end.replace_input_with(0, emit("Transpose", [found], old.dtype, order, perm=[0, 2, 1, 3]))
    end.replace_input_with(1, emit.constant([0, 0, heads * size]))
    many.outputs.extend([*outputs, *written])


def _heads(value: ir.Value | None) -> tuple[int, int]:
    """Heads and their size, of [batch, heads, time, size]."""
    _, heads, _, size = (None if value is None else dims(value)) or (0, 0, 0, 0)
    return int(heads), int(size)


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
    batch, time = (dims(value) or (BATCH, TIME))[:2]
    apart = emit("Reshape", [value, shape], value.dtype, [batch, time, heads, size])
    return emit("Transpose", [apart], value.dtype, [batch, heads, time, size], perm=[0, 2, 1, 3])
