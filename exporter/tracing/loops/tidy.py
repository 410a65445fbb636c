"""Rules that bring a term into its plainest form, so that iterations can be compared.

Each holds for all values: a view of a view, a read of what was just written, a write of every
entry.  A rule takes the arguments of an operator and returns a term, or None to leave it.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .terms import Term, Terms, aten, is_size

Rule = Callable[..., Term | None]

SLICE, SELECT, STACK = aten.slice.Tensor, aten.select.int, aten.stack.default
UNSQUEEZE, FULL, CAT = aten.unsqueeze.default, aten.full.default, aten.cat.default
INSERT = aten.select_scatter.default
MASKS = (torch.bool, torch.uint8)  # as an index, where and not which


def _axis(term: Term, axis: int) -> int:
    return axis % len(term.shape)


def _bounds(size: int, start: Any, end: Any, step: int) -> tuple[int, int] | None:
    if not isinstance(size, int) or isinstance(start, Term) or isinstance(end, Term):
        return None
    first, last, _ = slice(start, end, step).indices(size)
    return first, max(first, last)


def _slice(
    terms: Terms, x: Term, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Term | None:
    axis = _axis(x, axis)
    size = x.shape[axis]
    if step == 1 and start in (None, 0) and (end is None or _beyond(end, size)):
        return x
    bounds = _bounds(size, start, end, step)  # type: ignore[arg-type]
    if bounds is None:
        return None
    first, last = bounds
    if first == last:
        return terms.filled([*x.shape[:axis], 0, *x.shape[axis + 1 :]], 0, x.value)
    if (args := _of(x, STACK)) and args[1] == axis:
        return terms(STACK, args[0][first:last:step], axis)
    if x.op is FULL:
        shape = [*x.shape[:axis], len(range(first, last, step)), *x.shape[axis + 1 :]]
        return terms.filled(shape, x.leaves[-2], x.value)
    if (args := _of(x, SLICE)) and args[1] == axis and step == 1 and len(args) == 4:
        return terms(SLICE, args[0], axis, args[2] + first, args[2] + last)
    if step == 1 and last - first < terms.time and _is_extended(terms, x, axis):
        return terms(STACK, [terms(SELECT, x, axis, i) for i in range(first, last)], axis)
    if last - first == 1 and is_size(size, terms.time):
        return terms(UNSQUEEZE, terms(SELECT, x, axis, first), axis)
    return terms.plain(SLICE, x, axis, first, last, *([step] if step != 1 else []))


def _is_extended(terms: Terms, x: Term, axis: int) -> bool:
    """Whether `x` is a sequence of all tokens with something before or after them."""
    parts = _of(x, CAT)[0] if x.op is CAT and _of(x, CAT)[1] == axis else ()
    if x.op is aten.constant_pad_nd.default:
        parts = _of(x, aten.constant_pad_nd.default)[:1]
    return not is_size(x.shape[axis], terms.time) and any(
        part.fed and is_size(part.shape[axis], terms.time) for part in parts
    )


def _beyond(end: Any, size: Any) -> bool:
    return isinstance(end, int) and (end >= size if isinstance(size, int) else end >= 2**31)


def _of(x: Term, op: Any) -> Sequence[Any]:
    """Arguments of `x` where it is an `op`."""
    return x.arguments[0] if x.op is op else ()


def _select(terms: Terms, x: Term, axis: int, index: Any) -> Term | None:
    axis = _axis(x, axis)
    size = x.shape[axis]
    if not isinstance(size, int) or isinstance(index, Term):
        return None
    index %= size
    if x.op is FULL:
        return terms.filled([*x.shape[:axis], *x.shape[axis + 1 :]], x.leaves[-2], x.value)
    if (args := _of(x, STACK)) and _axis(x, args[1]) == axis:
        return args[0][index]  # type: ignore[no-any-return]
    if (args := _of(x, UNSQUEEZE)) and _axis(x, args[1]) == axis:
        return args[0]  # type: ignore[no-any-return]
    if (args := _of(x, SLICE)) and args[1] == axis and len(args) == 4:
        return terms(SELECT, args[0], axis, args[2] + index)
    if (args := _of(x, INSERT)) and args[2] == axis:
        return args[1] if args[3] == index else terms(SELECT, args[0], axis, index)
    if (args := _of(x, CAT)) and args[1] == axis:
        for part in args[0]:
            if index < part.shape[axis]:
                return terms(SELECT, part, axis, index)
            index -= part.shape[axis]
    if (args := _of(x, aten.constant_pad_nd.default)) and args[0].shape[axis] != size:
        return _padded(terms, x, args, axis, index)
    return terms.plain(SELECT, x, axis, index)


def _padded(terms: Terms, x: Term, args: Sequence[Any], axis: int, index: int) -> Term | None:
    """One entry of an axis that was padded: of the padding, or of what was padded."""
    base, pads = args[0], list(args[1])
    at = 2 * (len(x.shape) - 1 - axis)
    inner = index - pads[at]
    rest = [*pads[:at], *pads[at + 2 :]]
    if not 0 <= inner < base.shape[axis]:
        shape = [*x.shape[:axis], *x.shape[axis + 1 :]]
        return terms.filled(shape, args[2] if len(args) > 2 else 0, x.value)
    entry = terms(SELECT, base, axis, inner)
    if not any(rest):
        return entry
    return terms(aten.constant_pad_nd.default, entry, rest, *args[2:])


def _getitem(terms: Terms, x: Any, index: int) -> Term | None:
    if not isinstance(x, Term):
        return x[index]  # type: ignore[no-any-return]
    if args := _of(x, aten.unbind.int):
        axis = _axis(args[0], args[1] if len(args) > 1 else 0)
        return terms(SELECT, args[0], axis, index)
    for op in (aten.split.Tensor, aten.split_with_sizes.default):
        if args := _of(x, op):
            axis = _axis(args[0], args[2] if len(args) > 2 else 0)
            if not is_size(args[0].shape[axis], terms.time):
                return None
            sizes = args[1] if isinstance(args[1], list) else [args[1]] * (index + 1)
            start = sum(sizes[:index])
            return terms(SLICE, args[0], axis, start, min(start + sizes[index], terms.time))
    return None


def _squeeze(terms: Terms, x: Term, axes: Any = None) -> Term | None:
    rank = len(x.shape)
    given = range(rank) if axes is None else axes if isinstance(axes, list) else [axes]
    gone = sorted({a % rank for a in given if rank and is_size(x.shape[a], 1)}, reverse=True)
    if not gone:
        return x
    if len(gone) == 1:
        if (args := _of(x, UNSQUEEZE)) and _axis(x, args[1]) == gone[0]:
            return args[0]  # type: ignore[no-any-return]
        if x.op is FULL:
            return terms(SELECT, x, gone[0], 0)
        return terms.plain(aten.squeeze.dim, x, gone[0])
    for axis in gone:
        x = terms(aten.squeeze.dim, x, axis)
    return x


def _unsqueeze(terms: Terms, x: Term, axis: int) -> Term | None:
    axis %= len(x.shape) + 1
    if x.op is FULL:
        return terms.filled([*x.shape[:axis], 1, *x.shape[axis:]], x.leaves[-2], x.value)
    return terms.plain(UNSQUEEZE, x, axis)


def _cat(terms: Terms, parts: Sequence[Term], axis: int = 0) -> Term | None:
    kept = [part for part in parts if not (len(part.shape) == 1 and is_size(part.shape[0], 0))]
    axis = _axis(kept[0], axis)
    kept = [part for part in kept if not is_size(part.shape[axis], 0)]
    flat: list[Term] = []
    for part in kept:
        if (args := _of(part, CAT)) and args[1] == axis:
            flat += args[0]
        elif (args := _of(part, STACK)) and args[1] == axis and len(parts) > 1:
            flat += [terms(UNSQUEEZE, entry, axis) for entry in args[0]]
        else:
            flat.append(part)
    if len(flat) == 1:
        return flat[0]
    if len(flat) == terms.time and all(is_size(part.shape[axis], 1) for part in flat):
        return terms(STACK, [terms(aten.squeeze.dim, part, axis) for part in flat], axis)
    return terms.plain(CAT, flat, axis)


def _stack(terms: Terms, parts: Sequence[Term], axis: int = 0) -> Term | None:
    return terms.plain(STACK, list(parts), axis % (len(parts[0].shape) + 1))


def _insert(terms: Terms, x: Term, entry: Term, axis: int, index: int) -> Term | None:
    """A write of one token's entry: all the entries, stacked again."""
    axis = _axis(x, axis)
    size = x.shape[axis]
    if not isinstance(size, int) or size != terms.time:
        return terms.plain(INSERT, x, entry, axis, index % size) if isinstance(size, int) else None
    index %= size
    entries = [terms(SELECT, x, axis, i) if i != index else entry for i in range(size)]
    return terms(STACK, entries, axis)


def _write(
    terms: Terms,
    x: Term,
    entries: Term,
    axis: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Term | None:
    """A write of a range: of all, or of some tokens."""
    axis = _axis(x, axis)
    size = x.shape[axis]
    if step == 1 and start in (None, 0) and (end is None or _beyond(end, size)):
        return entries
    bounds = _bounds(size, start, end, step)  # type: ignore[arg-type]
    if bounds is None or not is_size(size, terms.time):
        return None
    for place, index in enumerate(range(*bounds, step)):
        x = terms(INSERT, x, terms(SELECT, entries, axis, place), axis, index)
    return x


def _copy(terms: Terms, x: Term, source: Term, *_: Any) -> Term | None:
    if source.value.dtype != x.value.dtype:
        source = terms(aten._to_copy.default, source, dtype=x.value.dtype)  # noqa: SLF001
    return terms(aten.expand.default, source, [terms.size(dim) for dim in x.shape])


def _sized(terms: Terms, op: Any, x: Term, size: Sequence[Any]) -> Any:
    return terms.run(op, x.value, [s.value if isinstance(s, Term) else s for s in size])


def _expand(terms: Terms, x: Term, size: Sequence[Any], **_: Any) -> Term | None:
    value = _sized(terms, aten.expand.default, x, size)
    if same(value.shape, x.shape):
        return x
    if x.op is FULL:
        return terms.filled(value.shape, x.leaves[-2], x.value)
    return None


def _view(terms: Terms, x: Term, size: Sequence[Any], **_: Any) -> Term | None:
    value = _sized(terms, aten.reshape.default, x, size)
    if same(value.shape, x.shape):
        return x
    if x.op is FULL:
        return terms.filled(value.shape, x.leaves[-2], x.value)
    return None


def same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are equal, as they are written."""
    return [_written(dim) for dim in a] == [_written(dim) for dim in b]


def _written(dim: Any) -> Any:
    return dim if isinstance(dim, int) else dim.node.expr


def _pad(
    terms: Terms, x: Term, pads: Sequence[int], mode: str = "constant", value: Any = None
) -> Term | None:
    if mode != "constant":
        return None
    return terms(aten.constant_pad_nd.default, x, list(pads), *([] if value is None else [value]))


def _convert(terms: Terms, x: Term, *_: Any, **kwargs: Any) -> Term | None:
    dtype = kwargs.get("dtype") or x.value.dtype
    if dtype == x.value.dtype:
        return x
    if x.op is FULL:
        number = x.leaves[-2]
        number = type(number)(number) if dtype.is_floating_point else int(number)
        return terms.plain(FULL, [terms.size(d) for d in x.shape], number, dtype=dtype)
    return terms.plain(aten._to_copy.default, x, dtype=dtype)  # noqa: SLF001


def _embedding(terms: Terms, table: Term, indices: Term, *_: Any, **__: Any) -> Term | None:
    """Rows of a table at one place, as a position that Python counts is."""
    return _picked(terms, table, 0, indices) if indices.op is FULL else None


def _index(terms: Terms, x: Term, indices: Sequence[Any]) -> Term | None:
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(given) != 1 or given[0][1].op is not FULL or given[0][1].value.dtype in MASKS:
        return None
    return _picked(terms, x, *given[0])


def _index_select(terms: Terms, x: Term, axis: int, indices: Term) -> Term | None:
    return _picked(terms, x, _axis(x, axis), indices) if x.shape and indices.op is FULL else None


def _picked(terms: Terms, x: Term, axis: int, indices: Term) -> Term | None:
    """The entries of `x` at `indices`, which are one number."""
    size, number = x.shape[axis], indices.leaves[-2]
    if not isinstance(size, int) or not isinstance(number, int) or not -size <= number < size:
        return None
    found = terms(SELECT, x, axis, number)
    for _ in indices.shape:
        found = terms(UNSQUEEZE, found, axis)
    if all(is_size(dim, 1) for dim in indices.shape):
        return found
    shape = [*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]]
    return terms(aten.expand.default, found, [terms.size(dim) for dim in shape])


def _counted(terms: Terms, start: Any, end: Any, step: Any = 1, **kwargs: Any) -> Term | None:
    """Numbers from `start` on: that number, or those from 0 on and it."""
    if not all(type(x) is int for x in (start, end, step)) or start == 0 or step != 1:
        return None
    counted = terms(aten.arange.start, 0, max(end - start, 0), **kwargs)
    if is_size(counted.shape[0], 1):
        return terms.filled([1], start, counted.value)
    return terms(aten.add.Tensor, counted, start)


def _itself(_terms: Terms, x: Term, *_: Any, **__: Any) -> Term:
    return x


def _dropout(_terms: Terms, x: Term, _chance: float, train: bool) -> Term | None:
    return None if train else x


RULES: dict[Any, Rule] = {
    SLICE: _slice,
    SELECT: _select,
    STACK: _stack,
    CAT: _cat,
    UNSQUEEZE: _unsqueeze,
    INSERT: _insert,
    operator.getitem: _getitem,
    aten.slice_scatter.default: _write,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.squeeze.default: _squeeze,
    aten.copy.default: _copy,
    aten.pad.default: _pad,
    aten.expand.default: _expand,
    aten.view.default: _view,
    aten.reshape.default: _view,
    aten._unsafe_view.default: _view,  # noqa: SLF001
    aten._to_copy.default: _convert,  # noqa: SLF001
    aten.dropout.default: _dropout,
    aten.embedding.default: _embedding,
    aten.index.Tensor: _index,
    aten.index_select.default: _index_select,
    aten.arange.start: _counted,
    aten.arange.start_step: _counted,
    **dict.fromkeys(
        (
            aten.alias.default,
            aten.clone.default,
            aten.detach.default,
            aten.contiguous.default,
            aten.lift_fresh_copy.default,
        ),
        _itself,
    ),
}
