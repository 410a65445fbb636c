"""Keys that belong to no token, before or behind those of tokens -> sums of their own.

    softmax(q [m; k]^T) [n; v]  ->  p[:, :T] v + p[:, T:] n,  p = softmax([q k^T, q m^T])

Memory keys and values are learnt, or those of a prefix that a whole sequence has: persistent memory
(Sukhbaatar et al. 2019, arXiv:1907.01470, equation 5), null keys, `add_bias_kv` and `add_zero_attn`
of `torch.nn.MultiheadAttention`, tuned prefixes (Li and Liang 2021, arXiv:2101.00190).  What is
computed along the keys is taken apart (`_key_parts`) from the sum back to where they were joined;
where something on the way combines keys otherwise than by the softmax, nothing is changed.  A Slice
that leaves the entries of no token out is the end of such a way as well: a column of zeros beside
the scores, or a sum of nothing before those of tokens, of which differences are taken (the
stabilised parallel form of mLSTM, Beck et al. 2024, arXiv:2405.04517, appendix A.3).
"""

import onnx_ir as ir

from intaglio.passes.analysis.pairs import surplus
from intaglio.passes.analysis.time_facts import dim_of, length
from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import (
    Dim,
    Emitter,
    attribute,
    describe,
    dims,
    input_of,
    integers,
    replace_uses,
)
from intaglio.state import TIME

from ._initial_values import is_zero
from ._key_parts import KeyParts
from ._key_places import UnfitError, lead

INT64, BOOL = ir.DataType.INT64, ir.DataType.BOOL


class SplitMemoryKeys(Exact):
    """Sum over keys of tokens, and over keys of none, each by itself."""

    for_tokens = True

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite each sum over keys that were joined, and each cut that leaves some out."""
        notes = []
        for node in list(model.graph):
            root = None if node.domain or len(node.outputs) != 1 else ROOTS.get(node.op_type)
            try:
                new = None if root is None else root(node)
            except UnfitError:
                continue
            if new is None:
                continue
            replace_uses(node.outputs[0], new)
            model.graph.remove(node, safe=True)
            notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)


def _product(node: ir.Node) -> ir.Value | None:
    weights, values = node.inputs
    shape = dims(node.outputs[0]) or ()
    if weights is None or values is None:
        return None
    return _summed(Emitter(node), weights, values, shape)


def _summed(
    emit: Emitter, weights: ir.Value, values: ir.Value, shape: tuple[Dim, ...]
) -> ir.Value | None:
    """The product of both, which sums over keys; None where none of these is of no token."""
    left, right = dims(weights) or (), dims(values) or ()
    if min(len(left), len(right)) < 2 or left[-1] != right[-2] or not surplus(left[-1]):
        return None
    parts = KeyParts(emit, lead(values, len(right) - 2), _tokens(left[-1]))
    pairs = zip(
        parts.of(weights, len(left) - 1).all, parts.of(values, len(right) - 2).all, strict=True
    )
    total: ir.Value | None = None
    for weight, value in pairs:
        if weight is None or value is None or is_zero(value):
            continue
        one = emit("MatMul", [weight, value], values.dtype, shape)
        total = one if total is None else emit("Add", [total, one], values.dtype, shape)
    return total


def _tokens(dim: Dim) -> str:
    """How many keys of tokens there are of all that `dim` counts."""
    found = length(dim)
    return dim_of(found[0]) if found is not None else TIME


def _cut(node: ir.Node) -> ir.Value | None:
    given, shape = node.inputs[0], dims(node.outputs[0]) or ()
    starts, axes, steps = (integers(input_of(node, place)) for place in (1, 3, 4))
    if given is None or axes is None or len(axes) != 1 or steps not in (None, [1]) or not starts:
        return None
    axis, emit = axes[0] % len(shape), Emitter(node)
    extra = surplus((dims(given) or ())[axis])
    if not extra:
        return None
    time = _tokens((dims(given) or ())[axis])
    if shape[axis] == time and 0 < starts[0] <= extra:
        return KeyParts(emit, (starts[0], extra - starts[0]), time).of(given, axis).tokens
    if starts == [0] and (before := lead(given, axis))[0] == shape[axis]:
        return KeyParts(emit, before, time).of(given, axis).before
    return None


def _attention(node: ir.Node) -> ir.Value | None:
    """Attention as one node, written out; heads that share keys along an axis of their own."""
    query, key, value, *_ = node.inputs
    shapes = dims(query), dims(key), dims(value)
    mask = input_of(node, 3)
    if query is None or key is None or value is None or any(len(s or ()) != 4 for s in shapes):
        return None
    if not surplus((dims(key) or ())[2]) or len(node.inputs) > 4:
        return None
    emit, dtype = Emitter(node), query.dtype
    (batch, heads, tokens, size), (_, shared, keys, _), (*_, wide) = map(_four, shapes)
    if shared not in (1, heads) or attribute(node, "is_causal", 0):
        raise UnfitError
    turned = emit("Transpose", [key], dtype, [batch, shared, size, keys], perm=[0, 1, 3, 2])
    shape = [batch, heads, tokens, keys]
    scores = emit("MatMul", [query, turned], dtype, shape)
    scale = attribute(node, "scale")
    if scale is None:
        scale = int(size) ** -0.5
    kind = dtype.numpy() if dtype is not None else float
    scores = emit("Mul", [scores, emit.constant(scale, kind)], dtype, shape)
    if cap := attribute(node, "softcap", 0.0):
        scores = emit("Div", [scores, emit.constant(cap, kind)], dtype, shape)
        scores = emit("Tanh", [scores], dtype, shape)
        scores = emit("Mul", [scores, emit.constant(cap, kind)], dtype, shape)
    if mask is not None and mask.dtype == BOOL:
        low = emit.constant(float("-inf"), kind)
        scores = emit("Where", [mask, scores, low], dtype, shape)
    elif mask is not None:
        scores = emit("Add", [scores, mask], dtype, shape)
    weights = emit("Softmax", [scores], dtype, shape, axis=-1)
    return _summed(emit, weights, value, (batch, heads, tokens, wide))


def _four(shape: tuple[Dim, ...] | None) -> tuple[Dim, Dim, Dim, Dim]:
    a, b, c, d = shape or ()
    return a, b, c, d


ROOTS = {"Attention": _attention, "MatMul": _product, "Slice": _cut}
