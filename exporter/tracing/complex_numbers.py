"""Complex numbers of a captured program as pairs of real ones, along a last axis of two.

ONNX has no complex numbers.  Rotary embeddings are often written with them: x e^{i m theta} for a
pair of channels x at position m (Su et al. 2021, arXiv:2104.09864, equation 13), and so are
diagonal recurrences with poles in the plane.  Each operator on them becomes the same on pairs; one
that is not known here is left to the converter, which refuses it by name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

ATEN = torch.ops.aten
REAL_AND_IMAGINARY = 2


def pair_complex_numbers(program: ExportedProgram) -> None:
    """Rewrite `program` in place so that no operator gives a complex number."""
    graph = program.graph
    weights = _complex_weights(program)
    pairs: dict[fx.Node, fx.Node] = dict(weights)
    for node in list(graph.nodes):
        if node.op != "call_function" or not (_is_complex(node) or _takes(node, pairs)):
            continue
        rule = RULES.get(node.target)
        if rule is None:
            return
        with graph.inserting_before(node):
            new = rule(_Pairs(node, pairs), *node.args, **_own(node.kwargs))
        if new is None:
            return
        if _is_complex(node):
            pairs[node] = new
        else:
            node.replace_all_uses_with(new)
    for node in reversed(list(graph.nodes)):
        made = node in pairs and node not in weights
        if made or (_takes(node, pairs) and not node.users and node not in weights.values()):
            graph.erase_node(node)
    for weight, pair in weights.items():
        pair.replace_all_uses_with(weight)
        graph.erase_node(pair)
        weight.meta["val"] = pair.meta["val"]
    _store_as_pairs(program, weights)
    program.graph_module.recompile()


def _complex_weights(program: ExportedProgram) -> dict[fx.Node, fx.Node]:
    """The placeholders of complex weights, each with a node that stands for its pairs."""
    found = {}
    graph = program.graph
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for node in _holders(program):
        if _is_complex(node):
            with graph.inserting_before(first):
                pair = graph.call_function(ATEN.view_as_real.default, (node,))
            pair.meta = {**node.meta, "val": torch.view_as_real(node.meta["val"].resolve_conj())}
            found[node] = pair
    return found


def _holders(program: ExportedProgram) -> dict[fx.Node, str]:
    """The placeholders of weights, with the names under which the program keeps their values."""
    specs = program.graph_signature.input_specs
    nodes = (node for node in program.graph.nodes if node.op == "placeholder")
    kept = {**program.state_dict, **program.constants}
    return {
        node: str(spec.target)
        for node, spec in zip(nodes, specs, strict=True)
        if str(spec.target) in kept
    }


def _store_as_pairs(program: ExportedProgram, weights: Mapping[fx.Node, fx.Node]) -> None:
    names = _holders(program)
    for weight in weights:
        name = names[weight]
        kept = program.state_dict if name in program.state_dict else program.constants
        kept[name] = as_pairs(kept[name])


def as_pairs(weight: Any) -> Any:
    """A complex weight as pairs of real numbers; anything else as it is."""
    if not isinstance(weight, Tensor) or not weight.is_complex():
        return weight
    pairs = torch.view_as_real(weight.detach().resolve_conj()).contiguous()
    learned = isinstance(weight, nn.Parameter)
    return nn.Parameter(pairs, requires_grad=weight.requires_grad) if learned else pairs


def _own(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a rule may be told beside its operands: types and places are those of the pairs."""
    return {k: v for k, v in kwargs.items() if k not in ("dtype", "device", "layout", "pin_memory")}


def _is_complex(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.is_complex()


def _takes(node: fx.Node, pairs: Mapping[fx.Node, fx.Node]) -> bool:
    return any(each in pairs for each in node.all_input_nodes)


class _Pairs:
    """Emits what a node becomes: pairs by what they stand for, in the module of the node."""

    def __init__(self, node: fx.Node, pairs: Mapping[fx.Node, fx.Node]) -> None:
        self._node, self._pairs = node, pairs

    def __call__(self, target: Any, *args: Any) -> fx.Node:
        """Emit an operator on real numbers."""
        new = self._node.graph.call_function(target, args)
        known = fx.map_arg(args, lambda each: each.meta["val"])
        with self._node.meta["val"].fake_mode:  # sizes alone do not tell it
            new.meta = {**self._node.meta, "val": target(*known)}
        return new

    def of(self, value: fx.Node) -> fx.Node:
        """The pair that stands for `value`, which is complex."""
        return self._pairs[value]

    def parts(self, value: Any) -> tuple[Any, Any]:
        """Real and imaginary part; None is an imaginary part of zero."""
        if isinstance(value, fx.Node) and value in self._pairs:
            pair = self._pairs[value]
            return self(ATEN.select.int, pair, -1, 0), self(ATEN.select.int, pair, -1, 1)
        if isinstance(value, complex):
            return value.real, value.imag
        return value, None

    def typed(self, value: fx.Node) -> fx.Node:
        """`value`, real or complex, as a pair of the width that the node gives."""
        width = self._node.meta["val"].dtype.to_real()
        if value in self._pairs:
            pair = self._pairs[value]
            same = pair.meta["val"].dtype == width
            return pair if same else self(ATEN.to.dtype, pair, width)
        real = self(ATEN.to.dtype, value, width)
        return self.join(real, self(ATEN.zeros_like.default, real))

    def join(self, real: fx.Node, imaginary: fx.Node) -> fx.Node:
        """A pair of its parts."""
        return self(ATEN.stack.default, [real, imaginary], -1)


def _polar(emit: _Pairs, size: Any, angle: Any) -> fx.Node:
    parts = (emit(f, angle) for f in (ATEN.cos.default, ATEN.sin.default))
    return emit.join(*(emit(ATEN.mul.Tensor, size, part) for part in parts))


def _quotient(emit: _Pairs, left: Any, right: Any) -> fx.Node:
    """(a + ib) / (c + id) = (a + ib)(c - id) / (c^2 + d^2)."""
    (a, b), (c, d) = emit.parts(left), emit.parts(right)
    if d is None:
        return emit.join(emit(ATEN.div.Tensor, a, c), emit(ATEN.div.Tensor, b, c))
    size = emit(ATEN.add.Tensor, emit(ATEN.mul.Tensor, c, c), emit(ATEN.mul.Tensor, d, d))
    real, imaginary = (emit(ATEN.mul.Tensor, part, a) for part in (c, d))
    if b is None:
        imaginary = emit(ATEN.neg.default, imaginary)
    else:
        real = emit(ATEN.add.Tensor, real, emit(ATEN.mul.Tensor, d, b))
        imaginary = emit(ATEN.sub.Tensor, emit(ATEN.mul.Tensor, c, b), imaginary)
    return emit.join(emit(ATEN.div.Tensor, real, size), emit(ATEN.div.Tensor, imaginary, size))


def _each_with_each(
    emit: _Pairs, product: Callable[[Any, Any], fx.Node], operands: Sequence[Any]
) -> fx.Node:
    """A product of two that is linear in both, of matrices or of single numbers."""
    (a, b), (c, d) = (emit.parts(each) for each in operands)
    if d is None:
        return emit.join(product(a, c), product(b, c))
    if b is None:
        return emit.join(product(a, c), product(a, d))
    return emit.join(
        emit(ATEN.sub.Tensor, product(a, c), product(b, d)),
        emit(ATEN.add.Tensor, product(a, d), product(b, c)),
    )


def _product(target: Any) -> Callable[..., fx.Node]:
    def rule(emit: _Pairs, left: Any, right: Any) -> fx.Node:
        return _each_with_each(emit, lambda x, y: emit(target, x, y), (left, right))

    return rule


def _einsum(emit: _Pairs, equation: str, operands: list[Any]) -> fx.Node | None:
    if len(operands) == 1:
        parts = (emit(ATEN.einsum.default, equation, [part]) for part in emit.parts(operands[0]))
        return emit.join(*parts)
    if len(operands) > 2:
        return None
    return _each_with_each(emit, lambda x, y: emit(ATEN.einsum.default, equation, [x, y]), operands)


def _sum(target: Any) -> Callable[..., fx.Node]:
    """A sum, or a difference: part by part; a part that is not there is zero."""

    def rule(emit: _Pairs, left: Any, right: Any) -> fx.Node:
        (a, b), (c, d) = emit.parts(left), emit.parts(right)

        def zero(like: Any) -> Any:  # of the shape that the other part broadcasts with
            return emit(ATEN.zeros_like.default, like) if isinstance(like, fx.Node) else 0.0

        return emit.join(
            emit(target, a, c),
            emit(target, zero(a) if b is None else b, zero(c) if d is None else d),
        )

    return rule


def _negative(emit: _Pairs, value: fx.Node) -> fx.Node:
    return emit(ATEN.neg.default, emit.of(value))


def _power(emit: _Pairs, base: Any, exponent: Any) -> fx.Node | None:
    """|z|^n e^{i n arg z}, of a real exponent."""
    if isinstance(exponent, complex) or (isinstance(exponent, fx.Node) and _is_complex(exponent)):
        return None
    target = ATEN.pow.Tensor_Tensor if isinstance(exponent, fx.Node) else ATEN.pow.Tensor_Scalar
    turn = emit(ATEN.mul.Tensor, _angle(emit, base), exponent)
    return _polar(emit, emit(target, _length(emit, base), exponent), turn)


def _angle(emit: _Pairs, value: Any) -> fx.Node:
    real, imaginary = emit.parts(value)
    return emit(ATEN.atan2.default, imaginary, real)


def _logarithm(emit: _Pairs, value: Any) -> fx.Node:
    return emit.join(emit(ATEN.log.default, _length(emit, value)), _angle(emit, value))


def _joined(target: Any) -> Callable[..., fx.Node]:
    """Tensors put one after the other, along an axis that is theirs or new."""

    def rule(emit: _Pairs, values: list[Any], axis: int = 0) -> fx.Node:
        rank = values[0].meta["val"].ndim + int(target is ATEN.stack.default)
        return emit(target, [emit.typed(value) for value in values], axis % rank)

    return rule


def _zeros(emit: _Pairs, size: list[Any], *_: Any) -> fx.Node:
    return emit(ATEN.zeros.default, [*size, REAL_AND_IMAGINARY])


def _summed(emit: _Pairs, value: fx.Node, over: list[int], keep: bool = False) -> fx.Node | None:
    if not over:
        return None
    axes = [_counted(axis, value.meta["val"].ndim) for axis in over]
    return emit(ATEN.sum.dim_IntList, emit.of(value), axes, keep)


def _exponential(emit: _Pairs, value: Any) -> fx.Node:
    real, imaginary = emit.parts(value)
    return _polar(emit, emit(ATEN.exp.default, real), imaginary)


def _conjugate(emit: _Pairs, value: Any) -> fx.Node:
    real, imaginary = emit.parts(value)
    return emit.join(real, emit(ATEN.neg.default, imaginary))


def _length(emit: _Pairs, value: Any) -> fx.Node:
    real, imaginary = emit.parts(value)
    squares = (emit(ATEN.mul.Tensor, part, part) for part in (real, imaginary))
    return emit(ATEN.sqrt.default, emit(ATEN.add.Tensor, *squares))


def _moved(target: Any, places: int) -> Callable[..., fx.Node]:
    """An operator that moves entries; its first `places` arguments are axes, or a tuple of them."""

    def rule(emit: _Pairs, value: fx.Node, *args: Any) -> fx.Node:
        rank = value.meta["val"].ndim + int(target is ATEN.unsqueeze.default)
        axes = [_counted(axis, rank) for axis in args[:places]]
        return emit(target, emit.of(value), *axes, *args[places:])

    return rule


def _counted(axis: Any, rank: int) -> Any:
    """Axes counted from the front, where the last one of a pair does not shift them."""
    if isinstance(axis, list | tuple):
        return [_counted(each, rank) for each in axis]
    return axis % rank


def _permuted(emit: _Pairs, value: fx.Node, order: list[int]) -> fx.Node:
    rank = value.meta["val"].ndim
    return emit(ATEN.permute.default, emit.of(value), [*_counted(order, rank), rank])


def _repeated(emit: _Pairs, value: fx.Node, times: Sequence[Any]) -> fx.Node:
    """As often along each axis, those in front that only the result has included."""
    front = max(value.meta["val"].ndim - len(times), 0)
    return emit(ATEN.repeat.default, emit.of(value), [*[1] * front, *times, 1])


def _padded(emit: _Pairs, value: fx.Node, widths: Sequence[Any], *how: Any) -> fx.Node | None:
    """With zeros, or as the entries themselves say."""
    fill = next((each for each in how if not isinstance(each, str) and each is not None), 0)
    mode = next((each for each in how if isinstance(each, str)), "constant")
    return None if fill else emit(ATEN.pad.default, emit.of(value), [0, 0, *widths], mode)


def _chosen(emit: _Pairs, condition: fx.Node, left: Any, right: Any) -> fx.Node:
    return emit(
        ATEN.where.self,
        emit(ATEN.unsqueeze.default, condition, -1),
        *(emit.typed(each) for each in (left, right)),
    )


def _shaped(target: Any) -> Callable[..., fx.Node]:
    """An operator that is told the shape that it gives."""

    def rule(emit: _Pairs, value: fx.Node, shape: list[Any], *_: Any) -> fx.Node:
        return emit(target, emit.of(value), [*shape, REAL_AND_IMAGINARY])

    return rule


RULES: Mapping[Any, Callable[..., fx.Node | None]] = {
    ATEN.view_as_complex.default: lambda _, value: value,
    ATEN.view_as_real.default: lambda emit, value: emit.of(value),
    ATEN.complex.default: lambda emit, real, imaginary: emit.join(real, imaginary),
    ATEN.polar.default: _polar,
    **{
        each: _product(each)
        for each in (ATEN.mul.Tensor, ATEN.matmul.default, ATEN.mm.default, ATEN.bmm.default)
    },
    ATEN.div.Tensor: _quotient,
    ATEN.reciprocal.default: lambda emit, value: _quotient(emit, 1.0, value),
    ATEN.add.Tensor: _sum(ATEN.add.Tensor),
    ATEN.sub.Tensor: _sum(ATEN.sub.Tensor),
    ATEN.neg.default: _negative,
    ATEN.pow.Tensor_Tensor: _power,
    ATEN.pow.Tensor_Scalar: _power,
    ATEN.log.default: _logarithm,
    ATEN.angle.default: _angle,
    ATEN.einsum.default: _einsum,
    ATEN.cat.default: _joined(ATEN.cat.default),
    ATEN.stack.default: _joined(ATEN.stack.default),
    ATEN.zeros.default: _zeros,
    ATEN.zeros_like.default: lambda emit, value, **_: emit(
        ATEN.zeros_like.default, emit.of(value)
    ),
    ATEN.new_zeros.default: lambda emit, _value, size: _zeros(emit, size),
    ATEN.exp.default: _exponential,
    ATEN.conj.default: _conjugate,
    ATEN._conj.default: _conjugate,  # noqa: SLF001  the name of the operator
    ATEN.abs.default: _length,
    ATEN.real.default: lambda emit, value: emit.parts(value)[0],
    ATEN.imag.default: lambda emit, value: emit.parts(value)[1],
    ATEN.sum.dim_IntList: _summed,
    ATEN.unsqueeze.default: _moved(ATEN.unsqueeze.default, 1),
    ATEN.squeeze.dim: _moved(ATEN.squeeze.dim, 1),
    ATEN.transpose.int: _moved(ATEN.transpose.int, 2),
    ATEN.select.int: _moved(ATEN.select.int, 1),
    ATEN.t.default: lambda emit, value: emit(ATEN.transpose.int, emit.of(value), 0, 1),
    ATEN.numpy_T.default: lambda emit, value: _permuted(
        emit, value, list(reversed(range(value.meta["val"].ndim)))
    ),
    ATEN.permute.default: _permuted,
    ATEN.slice.Tensor: lambda emit, value, axis=0, *ends: emit(
        ATEN.slice.Tensor, emit.of(value), _counted(axis, value.meta["val"].ndim), *ends
    ),
    ATEN.expand.default: _shaped(ATEN.expand.default),
    ATEN.view.default: _shaped(ATEN.view.default),
    ATEN.reshape.default: _shaped(ATEN.reshape.default),
    ATEN.expand_as.default: lambda emit, value, other: (
        emit(ATEN.expand_as.default, emit.of(value), emit.of(other)) if _is_complex(other) else None
    ),
    ATEN.repeat.default: _repeated,
    ATEN.tile.default: _repeated,
    ATEN.narrow.default: _moved(ATEN.narrow.default, 1),
    ATEN.flip.default: _moved(ATEN.flip.default, 1),
    ATEN.cumsum.default: lambda emit, value, axis, **_: emit(
        ATEN.cumsum.default, emit.of(value), _counted(axis, value.meta["val"].ndim)
    ),
    ATEN.flatten.using_ints: lambda emit, value, start=0, end=-1: emit(
        ATEN.flatten.using_ints, emit.of(value), *_counted([start, end], value.meta["val"].ndim)
    ),
    ATEN.unflatten.int: _moved(ATEN.unflatten.int, 1),
    ATEN.pad.default: _padded,
    ATEN.constant_pad_nd.default: _padded,
    ATEN.where.self: _chosen,
    ATEN.alias.default: lambda emit, value: emit.of(value),
    ATEN.contiguous.default: lambda emit, value, **_: emit.of(value),
    ATEN.clone.default: lambda emit, value, **_: emit.of(value),
    **dict.fromkeys(
        (ATEN.to.device, ATEN.to.dtype, ATEN.to.dtype_layout, ATEN._to_copy.default),  # noqa: SLF001
        lambda emit, value, *_, **__: emit.typed(value),
    ),
    ATEN._assert_tensor_metadata.default: lambda emit, value, *_, **__: emit.of(value),  # noqa: SLF001
}  # fmt: skip
"""What each operator on complex numbers becomes."""
