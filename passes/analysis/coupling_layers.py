"""How layers pass permutations on: norms, convolutions, attention, and operators of our own."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from intaglio.passes.graph import attribute, attributes_of, dims, input_of, signature_of
from intaglio.signature import Signature

from .channels import Channels, cut, factor, fix, fixed, multiply, unify
from .coupling_shapes import Axes, Known, UncoupledError, axis_of, broadcast, taken


def norm(node: ir.Node, known: Known) -> list[Axes]:
    """Layer and root-mean-square norms over the last axes, with weights of these."""
    axes = taken(node, 0, known)
    start = axis_of(node, len(axes), default=-1)
    broadcast([axes[start:], *(known(v) for v in node.inputs[1:] if v is not None)])
    reduced = [*axes[:start], *[fixed(1)] * (len(axes) - start)]
    return [axes, reduced, reduced]


def channel_norm(node: ir.Node, known: Known) -> list[Axes]:
    """Norms of each channel with numbers of its own, in groups of channels if there are any."""
    axes = taken(node, 0, known)
    groups = attribute(node, "num_groups")
    if groups is not None and axes[1].size is not None:
        factor(axes[1], groups)
    for value in node.inputs[1:]:
        if value is not None:
            unify(axes[1], known(value)[0])
    return [axes]


def convolution(node: ir.Node, known: Known) -> list[Axes]:
    """Channels in groups: those of each group meet, and places do not move."""
    x, weight = (taken(node, index, known) for index in (0, 1))
    groups = attribute(node, "group", 1)
    for axis in (*x[2:], *weight[2:]):
        fix(axis)
    if x[1].size is None:
        raise UncoupledError
    turned = node.op_type == "ConvTranspose"
    rows, inner = factor(x[1], groups)
    own, other = (weight[0], weight[1])
    if turned:
        weight_rows, weight_inner = factor(own, groups)
        unify(weight_inner, inner)
        made = multiply([rows, other])
    else:
        weight_rows, _ = factor(own, groups)
        unify(other, inner)
        made = own
    unify(weight_rows, rows)
    if input_of(node, 2) is not None:
        unify(made, taken(node, 2, known)[0])
    return [[x[0], made, *_spatial(node)]]


def _spatial(node: ir.Node) -> Axes:
    shape = dims(node.outputs[0])
    if shape is None:
        raise UncoupledError
    return [fixed(dim if isinstance(dim, int) else None) for dim in shape[2:]]


def pool(node: ir.Node, known: Known) -> list[Axes]:
    """Channels each by themselves, over places."""
    axes = taken(node, 0, known)
    for axis in axes[2:]:
        fix(axis)
    return [[*axes[:2], *_spatial(node)]]


def attention(node: ir.Node, known: Known) -> list[Axes]:
    """Heads in groups that share keys and values; channels of queries with those of keys."""
    query, key, value = (taken(node, index, known) for index in range(3))
    used = [place for place, out in enumerate(node.outputs) if out.uses() or out.is_graph_output()]
    if any(place > 0 for place in used) or any(v is not None for v in node.inputs[4:6]):
        raise UncoupledError
    flat = len(query) == 3
    if flat:
        heads, kv_heads = (attribute(node, f"{who}_num_heads") for who in ("q", "kv"))
        if query[-1].size is None or key[-1].size is None or value[-1].size is None:
            raise UncoupledError
        q_heads, q = factor(query[-1], heads)
        k_heads, k = factor(key[-1], kv_heads)
        v_heads, v = factor(value[-1], kv_heads)
        times = (query[1], key[1], value[1])
    else:
        q_heads, k_heads, v_heads = query[1], key[1], value[1]
        q, k, v = query[3], key[3], value[3]
        times = (query[2], key[2], value[2])
    for axis in times:
        fix(axis)
    unify(q, k)
    unify(k_heads, v_heads)
    if q_heads.size is None or k_heads.size is None or q_heads.size % k_heads.size:
        raise UncoupledError
    unify(factor(q_heads, k_heads.size)[0], k_heads)
    if input_of(node, 3) is not None:
        mask = taken(node, 3, known)
        for axis in mask[-2:]:
            fix(axis)
        broadcast([[query[0], q_heads], mask[:-2]])
    if flat:
        return [[query[0], query[1], multiply([q_heads, v])]]
    return [[query[0], q_heads, query[2], v]]


def rotary(node: ir.Node, known: Known) -> list[Axes]:
    """Pairs of channels that are turned by one angle each: halves of an axis, or neighbours."""
    axes, cos, sin = (taken(node, index, known) for index in (0, 1, 2))
    channels = axes[-1]
    if len(axes) == 3:
        if channels.size is None:
            raise UncoupledError
        channels = factor(channels, attribute(node, "num_heads"))[1]
    size = channels.size
    if size is None:
        raise UncoupledError
    turned = attribute(node, "rotary_embedding_dim", 0) or size
    head = cut(channels, [turned, size - turned])[0] if turned < size else channels
    if attribute(node, "interleaved", 0):
        pairs, among = factor(head, turned // 2)
        fix(among)
    else:
        pairs, others = cut(head, [turned // 2, turned // 2])
        unify(pairs, others)
    for table in (cos, sin):
        unify(pairs, table[-1])
        for axis in table[:-1]:
            fix(axis)
    fix(axes[-2] if len(axes) == 4 else axes[1])
    return [axes]


def write(node: ir.Node, known: Known) -> list[Axes]:
    """Entries put into a cache along one axis."""
    cache, update = (taken(node, index, known) for index in (0, 1))
    along = axis_of(node, len(cache), default=-2)
    for place, (one, other) in enumerate(zip(cache, update, strict=True)):
        if place == along:
            fix(one)
            fix(other)
        else:
            unify(one, other)
    return [cache]


FREE: Mapping[str, frozenset[str]] = {
    "causal_conv_with_state": frozenset({"channels"}),
    "diagonal_ssm": frozenset({"D", "N"}),
    "linear_attention": frozenset({"q_num_heads", "kv_num_heads", "K", "V"}),
    "rnn": frozenset({"hidden_size", "I"}),
}
"""Axes of operators along which a permutation of the inputs permutes the outputs alike."""


def by_signature(node: ir.Node, known: Known) -> list[Axes]:
    """Axes of one name are permuted alike, those of no other name than in `FREE` not at all."""
    signature = signature_of(node)
    assert signature is not None
    attributes = attributes_of(node)
    names = [formal.name for formal in signature.inputs]
    given = dict(zip(names, node.inputs, strict=False))
    outputs = dict(zip([f.name for f in signature.outputs], node.outputs, strict=False))
    shapes = {name: dims(value) for name, value in {**given, **outputs}.items()}
    sizes = signature.bind(shapes, attributes)
    shared = {
        name: Channels(sizes[name]) if name in FREE[signature.name] else fixed(sizes[name])
        for name in sizes
    }
    if "q_num_heads" in shared and sizes["q_num_heads"] == sizes["kv_num_heads"]:
        shared["q_num_heads"] = shared["kv_num_heads"]
    elif "q_num_heads" in shared:
        fix(shared["q_num_heads"])
        fix(shared["kv_num_heads"])
    for name, value in given.items():
        if value is not None:
            for mine, theirs in zip(
                _named(signature, name, shapes[name], shared, attributes), known(value), strict=True
            ):
                if theirs.size != 1:
                    unify(mine, theirs)
    return [_named(signature, name, shapes[name], shared, attributes) for name in outputs]


def _named(
    signature: Signature,
    name: str,
    shape: Sequence[int | str] | None,
    shared: Mapping[str, Channels],
    attributes: Mapping[str, object],
) -> Axes:
    """The axes that the signature gives an input or output, by the shapes that it may have."""
    for terms in signature.formal(name).shapes(attributes) if shape is not None else ():
        made = [_product(term, shared) for term in terms]
        if (
            shape is not None
            and len(made) == len(shape)
            and all(
                axis.size is None or not isinstance(dim, int) or axis.size == dim
                for axis, dim in zip(made, shape, strict=True)
            )
        ):
            return [
                axis if isinstance(dim, int) and axis.size == dim else fixed(_known(dim))
                for axis, dim in zip(made, shape, strict=True)
            ]
    raise UncoupledError


def _known(dim: int | str) -> int | None:
    return dim if isinstance(dim, int) else None


def _product(term: str, shared: Mapping[str, Channels]) -> Channels:
    factors = term.split("*")
    if all(each in shared for each in factors):
        return multiply([shared[each] for each in factors])
    return fixed(int(term) if term.isdigit() else None)
