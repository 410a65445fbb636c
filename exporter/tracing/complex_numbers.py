"""Complex numbers of a captured program as pairs of real ones, along a last axis of two.

ONNX has no complex numbers.  Rotary embeddings are often written with them: x e^{i m theta} for a
pair of channels x at position m (Su et al. 2021, arXiv:2104.09864, equation 13), and so are
diagonal recurrences with poles in the plane.  Each operator on them becomes the same on pairs; one
that is not known here is left to the converter, which refuses it by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

ATEN = torch.ops.aten
REAL_AND_IMAGINARY = 2


def pair_complex_numbers(program: ExportedProgram) -> None:
    """Rewrite `program` in place so that no operator gives a complex number."""
    graph = program.graph
    pairs: dict[fx.Node, fx.Node] = {}
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
        if node in pairs or (_takes(node, pairs) and not node.users):
            graph.erase_node(node)
    program.graph_module.recompile()


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


def _product(emit: _Pairs, left: Any, right: Any) -> fx.Node:
    """(a + ib)(c + id) = ac - bd + i(ad + bc)."""
    (a, b), (c, d) = emit.parts(left), emit.parts(right)
    if b is None:
        a, b, c, d = c, d, a, b
    real, imaginary = emit(ATEN.mul.Tensor, a, c), emit(ATEN.mul.Tensor, b, c)
    if d is None:
        return emit.join(real, imaginary)
    return emit.join(
        emit(ATEN.sub.Tensor, real, emit(ATEN.mul.Tensor, b, d)),
        emit(ATEN.add.Tensor, imaginary, emit(ATEN.mul.Tensor, a, d)),
    )


def _sum(emit: _Pairs, left: Any, right: Any) -> fx.Node | None:
    (a, b), (c, d) = emit.parts(left), emit.parts(right)
    if b is None or d is None:
        return None  # shapes of the parts would differ where one broadcasts
    return emit.join(emit(ATEN.add.Tensor, a, c), emit(ATEN.add.Tensor, b, d))


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
    ATEN.mul.Tensor: _product,
    ATEN.add.Tensor: _sum,
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
    ATEN.permute.default: _permuted,
    ATEN.slice.Tensor: lambda emit, value, axis=0, *ends: emit(
        ATEN.slice.Tensor, emit.of(value), _counted(axis, value.meta["val"].ndim), *ends
    ),
    ATEN.expand.default: _shaped(ATEN.expand.default),
    ATEN.view.default: _shaped(ATEN.view.default),
    ATEN.reshape.default: _shaped(ATEN.reshape.default),
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
