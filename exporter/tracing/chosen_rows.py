"""Rows that were chosen by a mask, computed with and written back -> all rows, chosen at the end.

Mixtures of experts hand each expert the rows that a router sent to it (Shazeer et al. 2017,
arXiv:1701.06538; Jiang et al. 2024, arXiv:2401.04088):

    t, j = torch.where(chosen == e)
    y[t] += w[t, j, None] * expert(x[t])      or  y.index_add_(0, t, ..),  y[mask] = expert(x[mask])

How many there are depends on data, which no step has room for.  Where an expert takes each row
alone, that is ``y + where(chosen_j, w_j * expert(x), 0)`` summed over the columns j, for all rows.
Every operator between is shown to keep rows apart; where one is not known to, nothing is changed.
"""

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import SymInt, Tensor, fx
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from .in_place import functional
from .modules import named, path_of
from .mutations import origin, writes
from .program_nodes import argument, emitted, mutates, name_outputs_anew, shape_of, term
from .row_rules import keeps_rows

ATEN = torch.ops.aten
FINDS = (ATEN.where.default, ATEN.nonzero_numpy.default, ATEN.nonzero.default)
WRITES = (ATEN.index_put.default, ATEN.index_put_.default)
ADDS = (ATEN.index_add.default, ATEN.index_add_.default)
VIEWS = (ATEN.view.default, ATEN.reshape.default, ATEN.flatten.using_ints)
FLATTENS = (*VIEWS, ATEN.squeeze.default, ATEN.squeeze.dim, ATEN.squeeze.dims, ATEN.select.int)
PRODUCTS = {
    *(ATEN.linear.default, ATEN.matmul.default, ATEN.mm.default, ATEN.bmm.default),
    *(ATEN.addmm.default, ATEN.baddbmm.default, ATEN.einsum.default),
}
MOST_COLUMNS = 16
CHOSEN = "intaglio chosen rows"  # marks nodes that choose, among what PyTorch keeps of them


class _MixesRowsError(Exception):
    """An operator is not shown to keep rows apart, or a row is written more than once."""


def told(program: ExportedProgram) -> Iterator[str]:
    """What to tell of the modules in which all rows are computed."""
    found = Counter(path_of(node) for node in program.graph.nodes if CHOSEN in node.meta)
    for path, count in found.items():
        yield (
            f"In {named(path)} rows are chosen {count} times, by a mask or for an expert: a call "
            "computes each time all of them, and chooses then."
        )


class Choice(NamedTuple):
    """A node that chooses, for all rows, what is written to those of a mask."""

    node: fx.Node
    mask: fx.Node


def compute_all_rows(program: ExportedProgram, *, products: bool = True) -> list[Choice]:
    """Rewrite in `program`, in place, what is done with rows that a mask of them has chosen.

    Without `products` rows that are multiplied by weights are left, as that costs more for all.

    Returns:
        What then chooses rows.
    """
    graph = program.graph
    choices: list[Choice] = []
    found = [node for node in graph.nodes if node.target in FINDS]
    masks = {
        mask: None
        for node in graph.nodes
        if node.target in (ATEN.index.Tensor, *WRITES)
        and (mask := _mask_of(node.args[1])) is not None
    }
    for start in (*found, *masks):
        try:
            rows = _ChosenByMask.of(start)
            rows.products = products
            rows.follow()
        except _MixesRowsError:
            continue
        rows.replace()
        choices += rows.choices
    if found or masks:
        name_outputs_anew(program)
        graph.eliminate_dead_code()
        program.graph_module.recompile()
    return choices


def same_rows(a: fx.Node, b: fx.Node) -> bool:
    """Whether two masks are the same one, perhaps in another shape."""
    return _root(a) is _root(b)


def _mask_of(places: Any) -> fx.Node | None:
    """The mask by which rows are taken: the first of `places`, of truths."""
    first = places[0] if places else None
    if not isinstance(first, fx.Node) or len([each for each in places if each is not None]) != 1:
        return None
    value = first.meta.get("val")
    return first if isinstance(value, Tensor) and value.dtype is torch.bool else None


def _root(node: fx.Node) -> fx.Node:
    """What `node` is another shape of."""
    while node.target in VIEWS:
        node = node.args[0]  # type: ignore[assignment]
    return node


@dataclass
class _ChosenByMask:
    """Rows of one mask: `rows` and `columns` are the nodes that count them, where there are some.

    `known` holds, of each value that has an entry for each chosen row, what it is for all rows: one
    node, or one for each column.
    """

    mask: fx.Node
    counts: set[Any]  # of chosen rows, as PyTorch calls it
    axis: int = 0  # of the mask, along which rows lie
    rows: fx.Node | None = None
    columns: fx.Node | None = None
    known: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    sinks: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    products: bool = True  # whether products are computed for all rows

    @classmethod
    def of(cls, start: Any) -> "_ChosenByMask":
        """The rows that `start` chooses: a mask, or what finds its places."""
        if start.target not in FINDS:
            counts = {
                term(_leading(node))
                for node in start.graph.nodes
                if node.target is ATEN.index.Tensor
                and (taken := _mask_of(node.args[1])) is not None
                and same_rows(taken, start)
            }
            return cls(start, counts)
        mask: Any = start.args[0]
        places: dict[int, fx.Node] = {}
        for user in start.users:
            if start.target is ATEN.nonzero.default and not _of_sizes(user):
                flat = user.target in FLATTENS and len(shape_of(user)) == 1
                if places or not flat or len(shape_of(mask)) > 1:
                    raise _MixesRowsError
                places[0] = user
            elif user.target is operator.getitem:
                places[user.args[1]] = user
            elif not _of_sizes(user):
                raise _MixesRowsError
        shape: Any = shape_of(mask)
        free = [axis for axis, size in enumerate(shape) if isinstance(size, SymInt)]
        others = [size for size in shape if not isinstance(size, SymInt)]
        if len(shape) > 2 or len(free) != 1 or free[0] not in places:
            raise _MixesRowsError
        if any(size > MOST_COLUMNS for size in others):
            raise _MixesRowsError
        rows = places[free[0]]
        return cls(mask, {term(shape_of(rows)[0])}, free[0], rows, places.get(1 - free[0]))

    @property
    def width(self) -> int:
        """Columns of the mask."""
        shape = shape_of(self.mask)
        found = shape[1 - self.axis] if self.rows is not None and len(shape) == 2 else 1
        return int(found)

    def follow(self) -> None:
        """Emit everything for all rows, in front of where it is done for the chosen ones.

        Raises:
            _MixesRowsError: something is not shown to keep rows apart, or leaves as chosen rows.
        """
        places = {self.rows, self.columns} - {None}
        if any(
            origin(each) is origin(self.mask) for n in self.mask.graph.nodes for each in writes(n)
        ):
            raise _MixesRowsError  # it is another one by the time that rows are written
        for node in list(self.mask.graph.nodes):
            if node in self.known or node.op != "call_function":
                continue
            given = node.all_input_nodes
            if node in places or node.target in FINDS or _of_sizes(node):
                continue
            reads = places.intersection(given) or any(each in self.known for each in given)
            if not reads and not self._by_mask(node):
                continue
            with node.graph.inserting_before(node):
                self._take(node)
        if not self.sinks:
            raise _MixesRowsError

    def _by_mask(self, node: Any) -> bool:
        if self.rows is not None or node.target not in (ATEN.index.Tensor, *WRITES):
            return False
        mask = _mask_of(node.args[1])
        return mask is not None and same_rows(mask, self.mask)

    def _take(self, node: Any) -> None:
        if node.target is ATEN.index.Tensor and node.args[0] not in self.known:
            self.known[node] = self._gathered(node)
        elif node.target in (*WRITES, *ADDS) and node.args[0] not in self.known:
            self.sinks.append((node, self._written(node)))
        else:
            self.known[node] = self._each(node)
            if (place := node.args[0]) in self.known and mutates(node):
                self.known[place] = self.known[node]

    def _gathered(self, node: Any) -> list[fx.Node]:
        """``x[t]``, ``x[t, j]``, ``x[mask]``: x, its columns."""
        x, places = node.args
        at = {place: axis for axis, place in enumerate(places) if place is not None}
        if self.rows is None:
            mask = _mask_of(places)
            if mask is None:
                raise _MixesRowsError
            self._same_rows(x, shape_of(mask), 0)
            rank = len(shape_of(mask))
            if rank == 1:
                return [self._emit(node, ATEN.clone.default, x)]
            return [self._emit(node, ATEN.flatten.using_ints, x, 0, rank - 1)]
        if self.rows not in at or len(at) > 2 or (len(at) == 2 and self.columns not in at):
            raise _MixesRowsError
        axis = at[self.rows]
        self._same_rows(x, shape_of(self.mask)[self.axis : self.axis + 1], axis)
        if len(at) == 1:
            return [self._emit(node, ATEN.clone.default, x)]
        column = at[self.columns]
        if {axis, column} != {0, 1} or shape_of(x)[column] != self.width:
            raise _MixesRowsError
        return [self._emit(node, ATEN.select.int, x, column, j) for j in range(self.width)]

    def _same_rows(self, x: fx.Node, sizes: Any, axis: int) -> None:
        own = shape_of(x)[axis : axis + len(sizes)]
        if [term(size) for size in own] != [term(size) for size in sizes]:
            raise _MixesRowsError

    def _each(self, node: Any) -> list[fx.Node]:
        """An operator on the entries of each row."""
        value = node.meta["val"]
        op = node.target
        if op in PRODUCTS and not self.products:
            raise _MixesRowsError
        if mutates(node):
            if _views(node.args[0]) or any(map(_views, node.args[0].users)):
                raise _MixesRowsError  # what is written to is part of another value
            op = functional(node)
        rule = keeps_rows(op)
        if rule is None or not isinstance(value, Tensor | list | tuple):
            raise _MixesRowsError
        given = [each for each in node.all_input_nodes if each in self.known]
        axes = {self._axis(each) for each in given}
        if len(axes) != 1 or not rule(node, axes.pop()):
            raise _MixesRowsError
        for other in node.all_input_nodes:
            if other not in self.known and self._has_count(other):
                raise _MixesRowsError
        count = max(len(self.known[each]) for each in given)
        return [self._copied(node, op, column) for column in range(count)]

    def _axis(self, node: Any) -> int:
        """The axis of chosen rows, from the front."""
        value = node.meta["val"]
        shape = value[0].shape if isinstance(value, list | tuple) else value.shape
        axes = [axis for axis, size in enumerate(shape) if term(size) in self.counts]
        if len(axes) != 1:
            raise _MixesRowsError
        return axes[0]

    def _has_count(self, node: Any) -> bool:
        value = node.meta.get("val")
        sizes = value.shape if isinstance(value, Tensor) else [value]
        return any(isinstance(size, SymInt) and term(size) in self.counts for size in sizes)

    def _copied(self, node: Any, op: Any, column: int) -> fx.Node:
        def whole(each: fx.Node) -> fx.Node:
            found = self.known.get(each, [each])
            return found[column if len(found) > 1 else 0]

        args, kwargs = fx.map_arg((node.args, node.kwargs), whole)
        return self._emit(node, op, *args, **kwargs)

    def _written(self, node: Any) -> fx.Node:
        """What is written to, with what the chosen rows bring."""
        out = node.args[0]
        adds = node.target in ADDS
        if adds:
            axis, place, values = node.args[1:4]
            if place is not self.rows or argument(node, 4, "alpha", 1) != 1:
                raise _MixesRowsError
        else:
            places, values = node.args[1:3]
            adds, axis = bool(argument(node, 3, "accumulate", default=False)), 0
            if self.rows is None:
                self._same_rows(out, shape_of(_mask_of(places)), 0)
            elif list(places) != [self.rows]:
                raise _MixesRowsError
        if self.rows is not None:
            self._same_rows(out, shape_of(self.mask)[self.axis : self.axis + 1], axis)
        found = self.known.get(values)
        if found is None and (not isinstance(values, fx.Node) or shape_of(values)):
            raise _MixesRowsError
        if not adds and self.width > 1 and not _one_column(self.mask):
            raise _MixesRowsError
        total = self._emit(node, ATEN.clone.default, out)
        for column in range(self.width):
            value = values
            if found is not None:
                value = self._laid(node, values, found[column if len(found) > 1 else 0], out)
            mask = self._column(node, column, axis)
            new = self._emit(node, ATEN.add.Tensor, total, value) if adds else value
            total = self._emit(node, ATEN.where.self, mask, new, total)
            total.meta[CHOSEN] = True
            self.choices.append(Choice(total, self.mask))
        return total

    def _laid(self, node: Any, chosen: Any, value: fx.Node, out: fx.Node) -> fx.Node:
        """`value`, of all rows, as it stands in what it is written to."""
        rank = 1 if self.rows is not None else len(shape_of(_mask_of(node.args[1])))
        if len(shape_of(chosen)) != len(shape_of(out)) - rank + 1:
            raise _MixesRowsError
        if rank == 1:
            return value
        if list(shape_of(chosen)[1:]) != list(shape_of(out)[rank:]):
            raise _MixesRowsError
        return self._emit(node, ATEN.view_as.default, value, out)

    def _column(self, node: Any, column: int, axis: int) -> fx.Node:
        """Which rows are chosen in a column, as `node` has its axes."""
        mask = self.mask
        if self.rows is None:
            mask = _mask_of(node.args[1])  # type: ignore[assignment]
            axis, rank = 0, len(shape_of(mask))
        else:
            if len(shape_of(mask)) == 2:
                mask = self._emit(node, ATEN.select.int, mask, 1 - self.axis, column)
            rank = 1
        if mask.meta["val"].dtype is not torch.bool:
            mask = self._emit(node, ATEN.ne.Scalar, mask, 0)
        for _ in range(len(shape_of(node.args[0])) - axis - rank):
            mask = self._emit(node, ATEN.unsqueeze.default, mask, -1)
        return mask

    def _emit(self, node: Any, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        try:
            return emitted(node, target, *args, **kwargs)
        except RuntimeError as error:
            raise _MixesRowsError from error

    def replace(self) -> None:
        """Let what was written be what all rows give, and leave out what chose some of them."""
        for node, total in self.sinks:
            if mutates(node):
                with node.graph.inserting_before(node):
                    total = self._emit(node, ATEN.copy_.default, node.args[0], total)  # noqa: PLW2901
            node.replace_all_uses_with(total)
            node.graph.erase_node(node)
        gone = [*self.known, *(each for each in (self.rows, self.columns) if each is not None)]
        for node in gone:
            _erase_sizes(node)
        for node in sorted(gone, reverse=True):
            if not node.users:
                node.graph.erase_node(node)


def _leading(node: Any) -> Any:
    sizes = [size for size in shape_of(node) if free_unbacked_symbols(size)]
    if not sizes:
        raise _MixesRowsError
    return sizes[0]


def _of_sizes(node: Any) -> bool:
    """Whether a node asks for sizes, or holds what PyTorch asserts of them."""
    known = isinstance(node.meta.get("val"), Tensor | list | tuple)
    return node.op == "call_function" and not known


def _erase_sizes(node: fx.Node) -> None:
    """Erase what is asserted of the sizes of a value."""
    for user in list(node.users):
        if _of_sizes(user):
            _erase_sizes(user)
            if not user.users:
                user.graph.erase_node(user)


def _views(node: Any) -> bool:
    """Whether a value shares the entries of another."""
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable:
        return False
    return any(each.alias_info is not None for each in schema.returns)


def _one_column(mask: Any) -> bool:
    """Whether a row is chosen in one column at most: its entries are different experts' numbers."""
    if mask.target not in (ATEN.eq.Scalar, ATEN.eq.Tensor):
        return False
    given = mask.args[0]
    top = given.args[0] if given.target is operator.getitem and given.args[1] == 1 else None
    if top is None or top.target is not ATEN.topk.default:
        return False
    rank = len(shape_of(given))
    return isinstance(mask.args[1], int) and argument(top, 2, "dim", -1) % rank == rank - 1
