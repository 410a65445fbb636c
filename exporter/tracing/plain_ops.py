"""Bring a program to operations that have translations without tracing it once more.

PyTorch's exporter runs a whole program again, under functionalization, to write composite
operations as plain ones: most of the time that an export of a module takes.  Nearly always there
are but a few kinds of them, which say the same data in another shape or dtype; they are written as
views and casts here, node by node, by the shapes that the capture noted.  A program in which
anything else would change, or that writes to its values, is left as it is for PyTorch.
"""

import contextlib
import functools
import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch._export.utils import _check_valid_to_preserve, _is_cia_op
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.utils._pytree import tree_leaves

from .causal_convolution import name_outputs_anew

aten, SCAN = torch.ops.aten, torch.ops.higher_order.scan

RESHAPED = frozenset(
    [
        aten.reshape.default,
        aten.reshape_as.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.view_as.default,
    ]
)
CAST = frozenset(
    [aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.type_as.default]
)
RENAMED = {
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__and__.Scalar: aten.bitwise_and.Scalar,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.__or__.Scalar: aten.bitwise_or.Scalar,
    aten.__xor__.Tensor: aten.bitwise_xor.Tensor,
    aten.swapaxes.default: aten.transpose.int,
    aten.swapdims.default: aten.transpose.int,
}
NORM = aten._native_batch_norm_legit_no_training.default  # noqa: SLF001
TO_COPY = aten._to_copy.default  # noqa: SLF001
ASSERTED = frozenset(
    [
        aten._assert_tensor_metadata.default,  # noqa: SLF001  a public operation's own name
        aten._assert_scalar.default,  # noqa: SLF001
        aten.sym_constrain_range_for_size.default,
    ]
)
"""What the exporter takes out itself."""
MOVED = frozenset(
    [aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int, aten.moveaxis.intlist,
     aten.numpy_T.default]
)  # fmt: skip
PADDED = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}
COMPOSITE = frozenset(
    [*RESHAPED, *CAST, *RENAMED, *PADDED, *MOVED, aten.batch_norm.default, aten.chunk.default,
     aten.contiguous.default, aten.detach_.default, aten.dropout.default, aten.expand_as.default,
     aten.mT.default, aten.narrow.default, aten.outer.default, aten.rsub.Scalar,
     aten.square.default]
)  # fmt: skip


class NotPlainError(Exception):
    """A node that the shapes noted do not say how to write, as where nothing gives a size."""


def made_plain(program: ExportedProgram, known: Collection[Any]) -> bool:
    """Write composite operations of `program` as plain ones, in place, if that is all it needs.

    Args:
        program: as it was captured.
        known: operations that have translations.

    Returns:
        Whether each of its operations is one of `known` now that PyTorch would leave as it is; if
        not, the program computes what it did.
    """
    return made_plain_where(program, lambda node: _is_plain(node, known))


def made_plain_where(program: ExportedProgram, is_plain: Callable[[fx.Node], bool]) -> bool:
    """`made_plain` with another notion of which nodes stay as they are."""
    returned = program.graph_signature.output_specs
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in returned):
        return False
    graphs = [part for part in program.graph_module.modules() if isinstance(part, fx.GraphModule)]
    nodes = (node for part in graphs for node in part.graph.nodes)
    if not all(node.target in COMPOSITE or is_plain(node) for node in nodes):
        return False
    try:
        for part in graphs:
            _rewrite(part.graph)
    except NotPlainError:
        return False
    finally:
        for part in graphs:
            part.graph.eliminate_dead_code()
            part.recompile()
        name_outputs_anew(program)
    return True


def _is_plain(node: fx.Node, known: Collection[Any]) -> bool:
    """Whether PyTorch would leave a node as it is."""
    target = node.target
    if node.op in ("placeholder", "output"):
        return True
    if node.op == "get_attr":  # the body of a scan
        return all(user.target is SCAN for user in node.users)
    if node.op != "call_function":
        return False
    if target is SCAN:
        return target in known
    if not isinstance(target, OpOverload):
        return target is operator.getitem or isinstance(node.meta.get("val"), torch.SymInt | int)
    if target is aten.sym_size.int or target in ASSERTED:
        return True
    composite = _is_cia_op(target) and not _check_valid_to_preserve(target)
    mutable = target._schema.is_mutable  # noqa: SLF001  there is no other way to ask
    return target in known and not mutable and not composite


def _rewrite(graph: fx.Graph) -> None:
    sizes = SizeNodes(graph)
    for node in list(graph.nodes):
        if node.target not in COMPOSITE:
            sizes.note(node)
            continue
        with graph.inserting_before(node):
            made = _plain(graph, node, sizes)
        if "val" not in made.meta:
            made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        sizes.note(made)


def _plain(graph: fx.Graph, node: fx.Node, sizes: "SizeNodes") -> fx.Node:
    """The node that stands for a composite one."""
    given, target = node.args[0], node.target
    assert isinstance(given, fx.Node)

    def call(op: OpOverload, *args: Any, **options: Any) -> fx.Node:
        return graph.call_function(op, args, options)

    if target in RENAMED:
        return call(RENAMED[target], *node.args, **node.kwargs)
    if target is aten.detach_.default:
        return given
    if target is aten.contiguous.default:  # a view behind it is of these strides
        return call(aten.clone.default, given, memory_format=torch.contiguous_format)
    if target is aten.dropout.default:
        if node.args[2]:
            raise NotPlainError
        return given
    if target is aten.batch_norm.default:
        return _normed(graph, node)
    if target is aten.mT.default:
        return call(aten.transpose.int, given, -2, -1)
    if target is aten.rsub.Scalar:
        number, *factor = node.args[1:]
        return call(aten.sub.Tensor, number, given, **({"alpha": factor[0]} if factor else {}))
    if target is aten.square.default:
        return call(aten.pow.Tensor_Scalar, given, 2)
    was, value = given.meta["val"], node.meta["val"]
    if target in CAST:
        same = was.dtype == value.dtype
        return given if same else call(TO_COPY, given, dtype=value.dtype)
    if target in PADDED:
        return call(PADDED[target], *_padded(node))
    if target is aten.narrow.default:
        axis, start, length = node.args[1:]
        if not isinstance(start, int) or not isinstance(length, int) or start < 0:
            raise NotPlainError
        return call(aten.slice.Tensor, given, axis, start, start + length)
    if target is aten.chunk.default:
        axis = node.args[2] if len(node.args) > 2 else 0
        first = value[0].shape[axis]
        if not isinstance(was.shape[axis], int):
            raise NotPlainError
        return call(aten.split.Tensor, given, first, axis)
    if target in MOVED:
        return call(aten.permute.default, given, _moved(was.ndim, *node.args[1:]))
    if target is aten.outer.default:
        column = call(aten.unsqueeze.default, given, 1)
        column.meta = {**node.meta, "val": was.unsqueeze(1)}
        return call(aten.mul.Tensor, column, node.args[1])
    shape = [sizes.of(size) for size in value.shape]
    if target is aten.expand_as.default:
        return call(aten.expand.default, given, shape)
    laid = call(aten.clone.default, given, memory_format=torch.contiguous_format)
    laid.meta = {**node.meta, "val": was.contiguous()}
    return call(aten.view.default, laid, shape)


def _normed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A batch norm by its running moments."""
    *given, training, momentum, epsilon, _ = node.args
    if training or None in given:
        raise NotPlainError
    norm = graph.call_function(NORM, (*given, momentum, epsilon))
    value = node.meta["val"]
    norm.meta = {**node.meta, "val": (value, value.new_empty(0), value.new_empty(0))}
    return graph.call_function(operator.getitem, (norm, 0))


def _padded(node: fx.Node) -> list[Any]:
    """The arguments of a convolution whose padding is a word, with numbers in its place."""
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    spatial = weight.meta["val"].shape[2:]
    ones = [1] * len(spatial)
    given: list[Any] = [*node.args, *(None, ones, "valid", ones, 1)[len(node.args) - 2 :]]
    around = [step * (size - 1) for size, step in zip(spatial, given[5], strict=True)]
    if given[4] == "valid":
        given[4] = [0] * len(spatial)
    elif any(total % 2 for total in around):  # one more behind than in front
        raise NotPlainError
    else:
        given[4] = [total // 2 for total in around]
    return given


def _moved(rank: int, sources: Any = None, destinations: Any = None) -> list[int]:
    """The axes of a tensor once some of them are somewhere else; all reversed by default."""
    if sources is None:
        return list(range(rank))[::-1]
    pairs = zip(tree_leaves(destinations), tree_leaves(sources), strict=True)
    places = {destination % rank: source % rank for destination, source in pairs}
    others = (axis for axis in range(rank) if axis not in places.values())
    return [places[place] if place in places else next(others) for place in range(rank)]


class SizeNodes:
    """Nodes that give sizes, by the expressions that PyTorch has for them."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._nodes: dict[Any, int | fx.Node] = {}
        self._axes: dict[Any, tuple[fx.Node, int]] = {}

    def note(self, node: fx.Node) -> None:
        """Remember what sizes a node gives or has."""
        value = node.meta.get("val")
        if isinstance(value, SymInt):
            self._nodes.setdefault(value.node.expr, node)
        if isinstance(value, Tensor):
            shape: tuple[Any, ...] = tuple(value.shape)
            for axis, size in enumerate(shape):
                if isinstance(size, SymInt):
                    self._axes.setdefault(size.node.expr, (node, axis))

    def of(self, size: Any) -> int | fx.Node:
        """A size, a number or a SymInt, as an argument of a node that is inserted now."""
        return self._expressed(size.node.expr) if isinstance(size, SymInt) else int(size)

    def _expressed(self, expression: Any) -> int | fx.Node:
        if expression.is_Integer:
            return int(expression)
        if expression in self._nodes:
            return self._nodes[expression]
        if expression.is_Mul or expression.is_Add:  # of sizes of inputs, not of what is computed
            function = operator.mul if expression.is_Mul else operator.add
            with contextlib.suppress(NotPlainError):
                parts = [self._expressed(each) for each in expression.args]
                found = functools.reduce(functools.partial(self._combined, function), parts)
                self._nodes[expression] = found
                return found
        if expression not in self._axes:
            raise NotPlainError
        holder, axis = self._axes[expression]
        size = self._graph.call_function(aten.sym_size.int, (holder, axis))
        size.meta = {**holder.meta, "val": holder.meta["val"].shape[axis]}
        self._nodes[expression] = size
        return size

    def _combined(
        self, function: Callable[..., Any], left: int | fx.Node, right: int | fx.Node
    ) -> fx.Node:
        found = self._graph.call_function(function, (left, right))
        one = next(node for node in (left, right) if isinstance(node, fx.Node))
        values = (x.meta["val"] if isinstance(x, fx.Node) else x for x in (left, right))
        found.meta = {**one.meta, "val": function(*values)}
        return found
