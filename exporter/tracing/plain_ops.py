"""Bring a program to operations that have translations without tracing it once more.

PyTorch's exporter runs a whole program again, under functionalization, to write composite
operations as plain ones: most of the time that an export of a module takes.  Nearly always there
are but a few kinds of them, which say the same data in another shape or dtype; they are written as
views and casts here, node by node, by the shapes that the capture noted.  A program in which
anything else would change is left for PyTorch, which gives the same of what was written here.
"""

import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx
from torch._export.utils import _check_valid_to_preserve, _is_cia_op
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.utils._pytree import tree_leaves

from .in_place import write_out
from .program_nodes import name_outputs_anew
from .size_nodes import NotPlainError, SizeNodes

aten, SCAN = torch.ops.aten, torch.ops.higher_order.scan
APPLY = torch.ops.higher_order.flat_apply
INDEX = "torch._dynamo._trace_wrapped_higher_order_op.ModIndex"
"""What indexing is under `vmap` as Transformers makes masks, by the name that a program has."""

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
PADDED: dict[Any, OpOverload] = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


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
    write_out(program)
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
    if node.op == "get_attr":  # the body of a scan, or how arguments are nested
        return all(user.target in (SCAN, APPLY) for user in node.users)
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
    plain = _Written(graph, sizes)
    for node in list(graph.nodes):
        if node.target not in COMPOSITE:
            sizes.note(node)
            continue
        with graph.inserting_before(node):
            made = plain.made(node)
        if "val" not in made.meta:
            made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        sizes.note(made)


class _Written:
    """The nodes that stand for composite ones of a graph."""

    def __init__(self, graph: fx.Graph, sizes: SizeNodes) -> None:
        self._graph, self._sizes = graph, sizes

    def made(self, node: fx.Node) -> fx.Node:
        """The node that stands for `node`, at the place where nodes are inserted now."""
        target = node.target
        if target in RENAMED:
            return self._call(RENAMED[target], *node.args, **node.kwargs)
        return MAKERS[target](self, node, node.args[0])

    def _call(self, op: Any, *args: Any, **options: Any) -> fx.Node:
        return self._graph.call_function(op, args, options)

    def _shape(self, node: fx.Node) -> list[int | fx.Node]:
        return [self._sizes.of(size) for size in node.meta["val"].shape]

    def reshaped(self, node: fx.Node, given: fx.Node) -> fx.Node:
        laid = self._call(aten.clone.default, given, memory_format=torch.contiguous_format)
        laid.meta = {**node.meta, "val": given.meta["val"].contiguous()}
        return self._call(aten.view.default, laid, self._shape(node))

    def expanded(self, node: fx.Node, given: fx.Node) -> fx.Node:
        return self._call(aten.expand.default, given, self._shape(node))

    def cast(self, node: fx.Node, given: fx.Node) -> fx.Node:
        dtype = node.meta["val"].dtype
        same = given.meta["val"].dtype == dtype
        return given if same else self._call(TO_COPY, given, dtype=dtype)

    def contiguous(self, _: fx.Node, given: fx.Node) -> fx.Node:
        # It stays, since a view behind it may need its strides.
        return self._call(aten.clone.default, given, memory_format=torch.contiguous_format)

    def moved(self, node: fx.Node, given: fx.Node) -> fx.Node:
        axes = _moved(given.meta["val"].ndim, *node.args[1:])
        return self._call(aten.permute.default, given, axes)

    def turned(self, _: fx.Node, given: fx.Node) -> fx.Node:
        return self._call(aten.transpose.int, given, -2, -1)

    def narrowed(self, node: fx.Node, given: fx.Node) -> fx.Node:
        axis, start, length = node.args[1:]
        if not isinstance(start, int) or not isinstance(length, int) or start < 0:
            raise NotPlainError
        return self._call(aten.slice.Tensor, given, axis, start, start + length)

    def parted(self, node: fx.Node, given: fx.Node) -> fx.Node:
        axis: Any = node.args[2] if len(node.args) > 2 else 0
        if not isinstance(given.meta["val"].shape[axis], int):
            raise NotPlainError
        return self._call(aten.split.Tensor, given, node.meta["val"][0].shape[axis], axis)

    def outer(self, node: fx.Node, given: fx.Node) -> fx.Node:
        column = self._call(aten.unsqueeze.default, given, 1)
        column.meta = {**node.meta, "val": given.meta["val"].unsqueeze(1)}
        return self._call(aten.mul.Tensor, column, node.args[1])

    def reversed_difference(self, node: fx.Node, given: fx.Node) -> fx.Node:
        number, *factor = node.args[1:]
        options = {"alpha": factor[0]} if factor else {}
        return self._call(aten.sub.Tensor, number, given, **options)

    def applied(self, node: fx.Node, _: fx.Node) -> fx.Node:
        function, given, *places = node.args[2:]
        if function != INDEX or not all(isinstance(each, fx.Node) for each in (given, *places)):
            raise NotPlainError
        return self._call(aten.index.Tensor, given, places)

    def square(self, _: fx.Node, given: fx.Node) -> fx.Node:
        return self._call(aten.pow.Tensor_Scalar, given, 2)

    def same(self, node: fx.Node, given: fx.Node) -> fx.Node:
        if node.target is aten.dropout.default and node.args[2]:  # it is training
            raise NotPlainError
        return given

    def padded(self, node: fx.Node, _: fx.Node) -> fx.Node:
        return self._call(PADDED[node.target], *_padded(node))

    def normed(self, node: fx.Node, _: fx.Node) -> fx.Node:
        """A batch norm by its running moments."""
        *given, training, momentum, epsilon, _cudnn = node.args
        if training or None in given:
            raise NotPlainError
        norm = self._call(NORM, *given, momentum, epsilon)
        value = node.meta["val"]
        norm.meta = {**node.meta, "val": (value, value.new_empty(0), value.new_empty(0))}
        return self._call(operator.getitem, norm, 0)


MAKERS: dict[Any, Callable[[_Written, fx.Node, Any], fx.Node]] = {
    **dict.fromkeys(RESHAPED, _Written.reshaped),
    **dict.fromkeys(CAST, _Written.cast),
    **dict.fromkeys(MOVED, _Written.moved),
    **dict.fromkeys(PADDED, _Written.padded),
    APPLY: _Written.applied,
    aten.batch_norm.default: _Written.normed,
    aten.chunk.default: _Written.parted,
    aten.contiguous.default: _Written.contiguous,
    aten.detach_.default: _Written.same,
    aten.dropout.default: _Written.same,
    aten.expand_as.default: _Written.expanded,
    aten.mT.default: _Written.turned,
    aten.narrow.default: _Written.narrowed,
    aten.outer.default: _Written.outer,
    aten.rsub.Scalar: _Written.reversed_difference,
    aten.square.default: _Written.square,
}
COMPOSITE = frozenset([*RENAMED, *MAKERS])


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
