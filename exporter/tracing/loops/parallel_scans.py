"""Parallel scans -> the recurrences that they compute, token by token.

    h[t] = a[t] h[t - 1] + x[t],   h[0] = x[0]

A scan in parallel joins neighbours, and neighbours of these, in as many rounds as the number of
tokens can be halved (Hillis and Steele 1986, doi:10.1145/7902.7903; Blelloch 1990, CMU-CS-90-190).
At a fixed number of tokens it is sums and products of pieces of a and x, whatever is cut and joined
between: a polynomial of their entries, computed here with random ones in float64 beside the
recurrence.  Two polynomials that are equal there are the same (Schwartz 1980,
doi:10.1145/322217.322225).  The recurrence takes its place, as a loop that was unrolled.
"""

import itertools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch.export import ExportedProgram

from intaglio.exporter.tracing.program_nodes import emitted, name_outputs_anew

aten = torch.ops.aten
EQUAL = 1e-9  # of the largest, in float64: what is rounding

MOVES: Mapping[Any, Callable[..., Any]] = {
    aten.view.default: torch.reshape,
    aten._unsafe_view.default: torch.reshape,  # noqa: SLF001  its name in programs
    aten.clone.default: lambda x, **_: x,
    aten.contiguous.default: lambda x, **_: x,
    aten.alias.default: lambda x: x,
    aten.copy.default: lambda x, given, *_, **__: given.expand_as(x),
    operator.getitem: operator.getitem,
    **{
        op: op
        for op in (
            aten.add.Tensor,
            aten.cat.default,
            aten.chunk.default,
            aten.constant_pad_nd.default,
            aten.cumprod.default,
            aten.cumsum.default,
            aten.expand.default,
            aten.expand_as.default,
            aten.flip.default,
            aten.mul.Tensor,
            aten.neg.default,
            aten.pad.default,
            aten.permute.default,
            aten.reshape.default,
            aten.roll.default,
            aten.select.int,
            aten.select_scatter.default,
            aten.slice.Tensor,
            aten.slice_scatter.default,
            aten.split.Tensor,
            aten.split_with_sizes.default,
            aten.squeeze.dim,
            aten.stack.default,
            aten.sub.Tensor,
            aten.transpose.int,
            aten.unbind.int,
            aten.unflatten.int,
            aten.unsqueeze.default,
        )
    },
}
"""What gives polynomials of polynomials: sums, products, and pieces cut, joined and moved."""

NAMES = (aten.slice.Tensor, aten.alias.default, aten.clone.default, aten.contiguous.default)
"""What gives the very entries that it takes, where it gives as many."""

EXPANDS = (aten.expand.default, aten.expand_as.default)
REPEATS = (*EXPANDS, aten.repeat.default, aten.tile.default)
WRITES = (aten.slice_scatter.default, aten.copy.default)

FILLED = {
    aten.zeros_like.default: 0.0,
    aten.ones_like.default: 1.0,
    aten.new_zeros.default: 0.0,
    aten.new_ones.default: 1.0,
    aten.empty_like.default: torch.nan,
    aten.new_empty.default: torch.nan,
    aten.empty.memory_format: torch.nan,
    aten.zeros.default: 0.0,
    aten.ones.default: 1.0,
}
"""What is filled with one number, whatever it is given."""


def as_recurrences(program: ExportedProgram, time: int) -> int:
    """Write each parallel scan over `time` tokens in `program` as a recurrence; tell how many."""
    pieces, found = _Pieces(time), 0
    for node in list(program.graph.nodes):
        if node.target in WRITES and _is_all(node):
            node.replace_all_uses_with(node.args[1])
            continue
        pieces.take(node)
        scan = pieces.scan(node)
        if scan is None:
            continue
        with program.graph.inserting_before(node.next):
            node.replace_all_uses_with(_unrolled(node, scan, time))
        found += 1
    if found:
        program.graph.eliminate_dead_code()
        program.graph.lint()
        name_outputs_anew(program)
    return found


@dataclass(frozen=True)
class _Scan:
    """What a recurrence along `axis` decays by and adds, either of them where it does."""

    decay: fx.Node | None
    added: fx.Node | None
    axis: int


@dataclass
class _Pieces:
    """Values of pieces of sequences, computed from sequences whose entries are random."""

    time: int
    _values: dict[fx.Node, Any] = field(default_factory=dict)  # of what is not whole
    _from: dict[fx.Node, dict[fx.Node, None]] = field(default_factory=dict)  # whole ones behind it
    _drawn: dict[fx.Node, Tensor] = field(default_factory=dict)
    _random: torch.Generator = field(default_factory=torch.Generator)

    def take(self, node: fx.Node) -> None:
        """Compute `node` where it is, or is made of, a piece of a sequence.

        Whatever it cannot be computed from is as good as random itself.
        """
        inputs, op = node.all_input_nodes, node.target
        if op in FILLED and (wide := _wide(node)) is not None:
            self._values[node] = torch.full(_sizes(node), FILLED[op], dtype=wide)
            self._from[node] = {}
        if op not in MOVES:
            return
        cut = any(self._axis(x) is not None for x in inputs) and not self._keeps(node)
        if not cut and not any(x in self._values for x in inputs):
            return
        given = {x: self._value(x) for x in inputs}
        if any(value is None for value in given.values()):
            return
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), given.__getitem__)
        try:
            self._values[node] = MOVES[op](*args, **kwargs)
        except Exception:  # noqa: BLE001  what wider numbers are not taken for
            return
        self._from[node] = {}
        for x in inputs:
            self._from[node] |= self._from.get(x, {_of_all(x): None})

    def _keeps(self, node: fx.Node) -> bool:
        """Whether all that a node gives has an entry for each token."""
        value = node.meta.get("val")
        sizes = [list(each.shape) for each in value] if isinstance(value, list | tuple) else []
        return self._axis(node) is not None or (
            bool(sizes) and all(self.time in each for each in sizes)
        )

    def scan(self, node: fx.Node) -> _Scan | None:
        """The recurrence that `node` is the result of, over all tokens; None where it is none."""
        value = self._values.get(node)
        axis = self._axis(node)
        if not isinstance(value, Tensor) or axis is None or value.isnan().any():
            return None
        behind = [x for x in self._from[node] if isinstance(self._value(x), Tensor)]
        alike = [x for x in behind if _sizes(x) == list(value.shape)]
        for added, decay in itertools.product([*alike, None], [None, *behind]):
            if added is decay or (added is None and decay not in alike):
                continue
            scan = _Scan(decay, added, axis)
            if self._is(scan, value):
                return scan
        return None

    def _is(self, scan: _Scan, value: Tensor) -> bool:
        """Whether `value` is what `scan` gives."""
        decay, added = (None if x is None else self._value(x) for x in (scan.decay, scan.added))
        if decay is not None:
            sizes = (1,) * (value.ndim - decay.ndim) + tuple(decay.shape)
            meets = all(a in (1, b) for a, b in zip(sizes, value.shape, strict=False))
            if decay.ndim > value.ndim or not meets:
                return False
            decay = decay.expand_as(value).unbind(scan.axis)
        h: Tensor | None = None
        for t, wanted in enumerate(value.unbind(scan.axis)):
            x = None if added is None else added.select(scan.axis, t)
            h = _next(h, None if decay is None else decay[t], x)
            if not torch.allclose(h, wanted, rtol=0, atol=EQUAL * float(1 + wanted.abs().max())):
                return False
        return True

    def _value(self, node: fx.Node) -> Any:
        """The value of a node: that of a sequence is drawn; None where it is not known."""
        if node in self._values:
            return self._values[node]
        node = _of_all(node)
        value = node.meta.get("val")
        if isinstance(value, SymInt):
            return _hint(value)
        if not isinstance(value, Tensor) or _wide(node) is None:
            return None
        if node not in self._drawn:
            drawn = torch.rand(_sizes(node), generator=self._random, dtype=_wide(node))
            self._drawn[node] = drawn + 0.5
        return self._drawn[node]

    def _axis(self, node: fx.Node) -> int | None:
        """The one axis of a node that has an entry for each token."""
        value = node.meta.get("val")
        sizes = _sizes(node) if isinstance(value, Tensor) else []
        axes = [axis for axis, size in enumerate(sizes) if size == self.time]
        return axes[0] if len(axes) == 1 else None


def _is_all(node: Any) -> bool:
    """Whether what is written is all that `node` gives, as it is."""
    written = node.args[1]
    same = node.meta["val"].dtype == written.meta["val"].dtype
    return same and _sizes(node) == _sizes(written)


def _of_all(node: fx.Node) -> fx.Node:
    """What `node` takes all entries of, as ``x[:, :k]`` begins with; itself if it takes none."""
    while node.target in NAMES and _sizes(node) == _sizes(node.all_input_nodes[0]):
        node = node.all_input_nodes[0]
    return node


def _repeated(node: Any, axis: int) -> tuple[Any, int] | None:
    """The value that `node` repeats along `axis`, with that axis of one entry or, at -1, none.

    It meets others entry by entry as `node` does; None where `node` repeats nothing, or more.
    """
    if node.target is aten.unsqueeze.default:
        new = node.args[1] % len(_sizes(node))
        return None if new >= axis else _repeated(node.args[0], axis - 1)
    if node.target not in REPEATS:
        return None
    given = node.all_input_nodes[0]
    own = axis - len(_sizes(node)) + len(_sizes(given))
    if own < 0 or _sizes(given)[own] == 1:
        others = [
            n for at, n in enumerate(_sizes(node)[::-1]) if at != len(_sizes(node)) - 1 - axis
        ]
        kept = [n for at, n in enumerate(_sizes(given)[::-1]) if at != len(_sizes(given)) - 1 - own]
        meets = all(a in (1, b) for a, b in zip(kept, others, strict=False))
        return (given, max(own, -1)) if meets else None
    return _repeated(given, own) if node.target in EXPANDS else None


def _hint(size: int | SymInt) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


def _sizes(node: fx.Node) -> list[int]:
    """The sizes of a node's tensor where free ones are those of the example."""
    return [_hint(size) for size in node.meta["val"].shape]


def _wide(node: fx.Node) -> torch.dtype | None:
    """The widest type of the numbers that a node gives; None where these are no real numbers."""
    value = node.meta["val"]
    if value.is_complex():
        return torch.complex128
    return torch.float64 if value.is_floating_point() else None


def _next(h: Tensor | None, a: Tensor | None, x: Tensor | None) -> Tensor:
    """The state after a token; without one before, what is added, or else the decay."""
    if h is None:
        first = a if x is None else x
        assert first is not None
        return first
    decayed = h if a is None else a * h
    return decayed if x is None else decayed + x


def _unrolled(node: fx.Node, scan: _Scan, time: int) -> fx.Node:
    """The recurrence in the place of `node`, as nodes for each token, from zero or one."""

    def emit(target: Any, *args: Any) -> fx.Node:
        return emitted(node, target, *args)

    def of(token: int, given: fx.Node, axis: int) -> fx.Node:
        """What there is of a token."""
        if axis < 0:
            return given
        if _sizes(given)[axis] == time:
            return emit(aten.select.int, given, axis, token)
        return emit(aten.squeeze.dim, given, axis)

    decay, place = scan.decay, scan.axis
    if decay is not None and scan.added is not None:
        place += len(_sizes(decay)) - len(_sizes(node))
        decay, place = _repeated(decay, place) or (decay, place)
    states: list[fx.Node] = []
    for token in range(time):
        a = None if decay is None else of(token, decay, place)
        x = None if scan.added is None else of(token, scan.added, scan.axis)
        h = states[-1] if states else None
        if h is None and x is not None:  # before the first token, which is as all are then
            h = emit(aten.zeros_like.default, x)
        if h is not None and a is not None:
            h = emit(aten.mul.Tensor, a, h)
        h = h or a
        if x is not None:
            h = emit(aten.add.Tensor, h, x)
        assert h is not None
        states.append(h)
    return emit(aten.stack.default, states, scan.axis)
