"""Below what the integers that a module takes have to stay, found by watching where they index.

While the module runs, each entry of an integer input is followed through what only moves entries,
casts them, or adds integers to them, to the tables and axes that it picks from.  The bound of an
entry is the smallest of these.  A second run at other sizes tells an axis from a table.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from intaglio.runtime.graph_entry import Below, Bound
from intaglio.runtime.step_inputs import limit_in, strays_of

from .axes import Sizes
from .drawing import tiled

aten = torch.ops.aten

MOVES = {
    aten.select, aten.slice, aten.view, aten._unsafe_view, aten.reshape, aten.unsqueeze,  # noqa: SLF001
    aten.squeeze, aten.permute, aten.t, aten.transpose, aten.expand, aten.clone, aten.alias,
    aten.detach, aten.unbind, aten.split, aten.split_with_sizes, aten.repeat, aten.flip,
    aten.lift_fresh, aten.roll, aten.contiguous, aten.as_strided, aten.cat, aten.stack,
    aten.tril, aten.triu, aten.constant_pad_nd, aten.diagonal,
}  # fmt: skip
CASTS = {aten._to_copy, aten.to}  # noqa: SLF001
PICKS = {
    aten.index_select, aten.index_add, aten.index_copy, aten.index_fill, aten.gather, aten.scatter,
    aten.scatter_add, aten.scatter_reduce, aten.index_reduce, aten.index_add_, aten.index_copy_,
    aten.scatter_, aten.scatter_add_, aten.scatter_reduce_,
}  # fmt: skip
INDEXES = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_}  # noqa: SLF001
CHOOSES = {aten.index, aten.index_select, aten.gather, aten.masked_select}
FREE = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class _Trace:
    """For each entry of a tensor, the entry of the input that it is, -1 for none, plus `added`."""

    name: str
    origin: Tensor
    added: Tensor


@dataclass
class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's has no types
    """Follows integer inputs through a run; `limits` holds a bound for each of their entries."""

    supports_higher_order_operators = True

    inputs: Mapping[str, Tensor]
    limits: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Start at the inputs."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.compiled = False  # whether PyTorch compiled a loop or a branch under the watch
        self._known: dict[int, tuple[Tensor, _Trace]] = {}
        self.limits = {}
        for name, value in self.inputs.items():
            if is_integer(value):
                origin = torch.arange(value.numel()).reshape(value.shape)
                self._keep(value, _Trace(name, origin, torch.zeros_like(origin)))
                self.limits[name] = torch.full((value.numel(),), FREE)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types  # part of the protocol
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # loops and branches, which are not followed
            self.compiled = True
            return func(*args, **kwargs)
        packet = func.overloadpacket
        for index, size in _picks(packet, args):
            self._note(index, size)
        result = func(*args, **kwargs)
        if packet in MOVES:
            self._move(func, args, kwargs, result)
        elif packet in CASTS:
            self._cast(args[0], result)
        elif packet in CHOOSES:
            self._choose(func, args, result)
        elif packet in (aten.add, aten.sub) and isinstance(result, Tensor):
            self._add(packet, args, result)
        return result

    def _keep(self, value: Tensor, trace: _Trace) -> None:
        self._known[id(value)] = (value, trace)

    def _of(self, value: Any) -> _Trace | None:
        found = self._known.get(id(value))
        return None if found is None or found[0] is not value else found[1]

    def _note(self, index: Any, size: int) -> None:
        trace = self._of(index)
        if trace is None:
            return
        followed = trace.origin >= 0
        limits, places = (size - trace.added)[followed], trace.origin[followed]
        known = self.limits[trace.name]
        known.scatter_reduce_(0, places.reshape(-1), limits.reshape(-1), "amin")

    def _move(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        names = {trace.name for value in _tensors(args) if (trace := self._of(value))}
        if len(names) != 1:
            return
        (name,) = names

        def moved(pick: Callable[[_Trace], Tensor], other: int) -> list[Tensor]:
            def swap(value: Any) -> Any:
                if isinstance(value, list | tuple):
                    return type(value)(swap(each) for each in value)
                if not isinstance(value, Tensor):
                    return value
                trace = self._of(value)
                if trace is not None:
                    return pick(trace)
                return torch.full(value.shape, other, dtype=torch.int64)

            return list(_tensors(func(*(swap(a) for a in args), **kwargs)))

        origins = moved(lambda trace: trace.origin, -1)
        added = moved(lambda trace: trace.added, 0)
        for value, origin, more in zip(_tensors(result), origins, added, strict=True):
            self._keep(value, _Trace(name, origin, more))

    def _cast(self, value: Any, result: Any) -> None:
        trace = self._of(value)
        if trace is not None and isinstance(result, Tensor) and is_integer(result):
            self._keep(result, trace)

    def _choose(self, func: Any, args: tuple[Any, ...], result: Tensor) -> None:
        """Entries that a mask or other indices choose, as edges that are no loops."""
        trace = self._of(args[0])
        if trace is not None:
            origin, added = (func(each, *args[1:]) for each in (trace.origin, trace.added))
            self._keep(result, _Trace(trace.name, origin, added))

    def _add(self, packet: Any, args: tuple[Any, ...], result: Tensor) -> None:
        left, right = args[0], args[1]
        sign = 1 if packet is aten.add else -1
        trace, other = self._of(left), right
        if trace is None and sign == 1:
            trace, other = self._of(right), left
        if trace is None or not is_integer(result) or self._of(other) is not None:
            return
        shape = result.shape
        more = sign * (other if isinstance(other, Tensor) else torch.tensor(other))
        self._keep(
            result,
            _Trace(trace.name, trace.origin.expand(shape), trace.added.expand(shape) + more),
        )


def is_integer(value: Tensor) -> bool:
    """Whether a tensor holds whole numbers, flags left out."""
    return not (value.dtype.is_floating_point or value.dtype.is_complex) and (
        value.dtype is not torch.bool
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _picks(packet: Any, args: Sequence[Any]) -> Iterator[tuple[Any, int]]:
    """Tensors of indices, and the size of what each picks from."""
    if packet is aten.embedding:
        yield args[1], args[0].shape[0]
    elif packet in PICKS and isinstance(args[0], Tensor) and args[0].ndim:
        yield args[2], args[0].shape[args[1]]
    elif packet is aten.bincount and len(args) > 2 and bool((args[0] < args[2]).all()):
        yield args[0], args[2]  # a larger number makes the result longer
    elif packet in INDEXES:
        for axis, index in enumerate(args[1]):
            if index is not None and index.dtype is not torch.bool:
                yield index, args[0].shape[axis]


def bounds_of(
    module: nn.Module, examples: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int | str]]
) -> dict[str, Below]:
    """The bound of each integer input whose entries pick something: a number, or an axis by name.

    Args:
        module: what takes the inputs.
        examples: inputs that it runs on.
        shapes: the dimensions of each, free ones by name.

    Returns:
        A number where all entries pick from tables of that many rows, the name of an axis where
        they pick from it; one of these, or None, for each column of the last axis where they
        differ, or for each row of a matrix.
    """
    if not any(is_integer(value) for value in examples.values()):
        return {}
    first = _limits(module, examples)
    grown = _grown(examples, shapes)
    sizes = sizes_in(grown, shapes)
    try:
        second = _limits(module, grown)
    except Exception:  # noqa: BLE001  sizes that the module does not take
        second, sizes = first, sizes_in(examples, shapes)
    before = sizes_in(examples, shapes)
    found = {}
    for name, limits in first.items():
        bound = _bound((limits, second[name]), (before, sizes), shapes[name])
        # One bound for entries that pick from other tables, or nothing, may exclude the example.
        if bound is None or _excludes(bound, examples[name], before):
            continue
        if bound == int(examples[name].max()) + 1 and _follows(module, examples, name, bound):
            continue
        found[name] = bound
    return found


def _follows(module: nn.Module, examples: Mapping[str, Tensor], name: str, bound: int) -> bool:
    """Whether what an input picks from is as long as its own largest entry makes it."""
    try:
        least = _limits(module, {**examples, name: torch.zeros_like(examples[name])})[name]
    except Exception:  # noqa: BLE001  values that the module does not take
        return False
    return int(least.min()) < bound


def _excludes(bound: Below, example: Tensor, sizes: Sizes) -> bool:
    return bool(strays_of(example.numpy(), np.asarray(limit_in(bound, sizes), np.uint64)).any())


def _grown(
    examples: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int | str]]
) -> dict[str, Tensor]:
    """The examples at other sizes, each symbol by a number of its own more."""
    sizes = sizes_in(examples, shapes)
    more = {symbol: size + 1 + place for place, (symbol, size) in enumerate(sizes.items())}
    return {
        name: tiled(
            value, [more.get(str(d), n) for d, n in zip(shapes[name], value.shape, strict=True)]
        )
        for name, value in examples.items()
    }


def sizes_in(
    values: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int | str]]
) -> dict[str, int]:
    """The size of each symbol."""
    return {
        dim: size
        for name, value in values.items()
        for dim, size in zip(shapes[name], value.shape, strict=True)
        if isinstance(dim, str)
    }


def _limits(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Views, so that two inputs that are one tensor, or a buffer, are told apart.
    own = {name: value.clone() for name, value in inputs.items()}
    watch = Watch(own)
    with torch.no_grad(), watch:
        module(**own)
    if watch.compiled:  # it would go on with what it compiled for a watched run
        torch._dynamo.reset()  # noqa: SLF001
    return {name: watch.limits[name].reshape(own[name].shape) for name in watch.limits}


def _bound(
    limits: tuple[Tensor, Tensor], sizes: tuple[Sizes, Sizes], shape: Sequence[int | str]
) -> Below | None:
    """What the limits of all entries, at two sets of sizes, say together."""
    if not all(each.numel() for each in limits):
        return None
    if len(shape) > 1 and isinstance(shape[-1], int):
        columns = [_least([x[..., at] for x in limits], sizes) for at in range(shape[-1])]
        if len(set(columns)) > 1:
            return tuple(columns)
    elif len(shape) == 2 and isinstance(shape[0], int):
        rows = [_least([x[at] for x in limits], sizes) for at in range(shape[0])]
        if len(set(rows)) > 1:
            return tuple((row,) for row in rows)
    return _least(limits, sizes)


def _least(limits: Sequence[Tensor], sizes: tuple[Sizes, Sizes]) -> Bound:
    """The bound of entries that pick from one table, or along one axis."""
    least, then = (int(each.min()) for each in limits)
    if least == FREE:
        return None
    if least == then:
        return least
    before, after = sizes
    named = (s for s in before if before[s] == least and after[s] == then)
    return next(named, min(least, then))
