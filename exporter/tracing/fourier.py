"""Causal convolutions over all of time by Fourier transforms, as products over pairs of tokens.

State space models and long convolutions are trained as ``irfft(rfft(u, n) * rfft(k, n), n)[:L]``
(Gu et al. 2022, arXiv:2206.11893, section 3.3; Poli et al. 2023, arXiv:2302.10866, section 2).  A
product of transforms of length n is the convolution in a circle of n entries; where n >= 2 L - 1
nothing wraps around into the first L, which are then

    y_t = sum over s <= t of k_{t-s} u_s.

The kernel is evaluated at the lags t - s: it is an expression of ``arange(L)``, or the first L
entries of a weight.  What is written so is stepped like attention, with a cache of u.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from intaglio.errors import TraceError
from intaglio.exporter.sources.source import Source
from intaglio.state import TIME

from .causal_convolution import ATEN, FORWARD, INVERSES, FourierConvolution, axis_of
from .modules import named, path_of
from .program_nodes import (
    argument,
    cuts_nothing,
    emitted,
    is_fixed,
    length_of,
    mutates,
    name_outputs_anew,
    shape_of,
    term,
)

SAME_ENTRIES = frozenset(
    (ATEN.to.dtype, ATEN.real.default, ATEN.imag.default, ATEN.complex.default)
)
NEEDS = (
    "One that is a causal convolution of L tokens is stepped: ifft(fft(u, n) * fft(k, n), n)[..., "
    ":L] or the same of rfft and irfft, with n at least 2 L - 1 in terms of L, and a kernel k "
    "without data that is computed from torch.arange(L) entry by entry, or the first L entries of "
    "a parameter. Write it so, or as a recurrence."
)


class _UnknownError(Exception):
    """The kernel, or what is done to its transform, is none that is known; says why."""


def convolve_causally(program: ExportedProgram) -> None:
    """Rewrite in `program`, in place, what is a causal convolution by Fourier transforms."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    found = [node for node in calls if node.target in INVERSES]
    if not found or any(mutates(node) for node in calls):
        return
    for node in found:
        convolution = FourierConvolution.of(node)
        if convolution is None:
            continue
        try:
            for last in convolution.results:
                last.replace_all_uses_with(_PairSum(program, convolution, last).result())
        except _UnknownError:
            continue
    name_outputs_anew(program)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def refuse_transforms(source: Source, program: ExportedProgram) -> None:
    """Refuse Fourier transforms along time, which no step can compute.

    Raises:
        TraceError: if there is one, naming its module.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    times = {
        term(length_of(nodes[taken], axis))
        for name, taken in zip(source.inputs, program.graph_signature.user_inputs, strict=True)
        for axis, symbol in source.dynamic.get(name, {}).items()
        if symbol == TIME
    }
    symbols = {each for time in times for each in getattr(time, "free_symbols", ())}
    for node in nodes.values():
        if node.target not in FORWARD:
            continue
        length = term(length_of(node.args[0], axis_of(node)))
        if not symbols.isdisjoint(getattr(length, "free_symbols", ())):
            raise TraceError(
                f"In {named(path_of(node))}, {_spelled(node)} transforms along time: a step "
                f"has no later tokens to transform. {NEEDS}"
            )


def _spelled(node: fx.Node) -> str:
    return "torch.fft." + str(node.target).removeprefix("aten.fft_").removesuffix(".default")


@dataclass
class _PairSum:
    """Emits the sum over pairs in front of `place`.

    Of every value that has an entry for each lag, an evaluation at the pairs is kept: its axis of
    lags is that of t, and a further one at the end is that of s.
    """

    program: ExportedProgram
    convolution: FourierConvolution
    place: fx.Node
    _at_pairs: dict[fx.Node, tuple[fx.Node, int]] = field(default_factory=dict)

    def result(self) -> fx.Node:
        """The value that `place` holds.

        Raises:
            _UnknownError: if neither factor is a kernel.
        """
        a, b = self.convolution.factors
        with self.place.graph.inserting_before(self.place):
            try:
                return self._summed(a, b)
            except _UnknownError:
                return self._summed(b, a)

    def _summed(self, u: fx.Node, kernel: fx.Node) -> fx.Node:
        values, axis = self._evaluated(kernel)
        if axis != self.convolution.axis:
            raise _UnknownError
        # the axis of lags last but one, in front of the one of s
        values = self._emit(ATEN.movedim.int, values, axis - 1, -2)
        lag = self._lags()
        causal = self._emit(ATEN.ge.Scalar, lag, 0)
        values, mask, u = (
            self._emit(ATEN.to.dtype, each, self._kind()) for each in (values, causal, u)
        )
        column = self._emit(ATEN.unsqueeze.default, self._emit(ATEN.movedim.int, u, axis, -1), -1)
        weights = self._emit(ATEN.mul.Tensor, values, mask)
        summed = self._emit(ATEN.matmul.default, weights, column)
        return self._emit(
            ATEN.movedim.int, self._emit(ATEN.squeeze.dim, summed, -1), -1, self.convolution.axis
        )

    def _kind(self) -> torch.dtype:
        kind = self.place.meta["val"].dtype
        assert isinstance(kind, torch.dtype)
        return kind

    def _emit(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return emitted(self.place, target, *args, **kwargs)

    def _lags(self) -> fx.Node:
        """The lag t - s of every pair."""
        u, axis = self.convolution.factors[0], self.convolution.axis
        count = self.place.graph.call_function(ATEN.sym_size.int, (u, axis + len(shape_of(u))))
        count.meta = {**self.place.meta, "val": self.convolution.length}
        at = self._emit(ATEN.arange.default, count)
        rows, columns = (self._emit(ATEN.unsqueeze.default, at, dim) for dim in (1, 0))
        return self._emit(ATEN.sub.Tensor, rows, columns)

    def _reached(self) -> fx.Node:
        """The lags, those of later tokens as 0: a kernel need not have a value there."""
        return self._emit(ATEN.clamp.default, self._lags(), 0)

    def _is_length(self, size: Any) -> bool:
        return bool(term(size) == term(self.convolution.length))

    def _evaluated(self, node: Any) -> tuple[fx.Node, int]:
        """`node` at every pair, and which of its axes is that of lags, from the end."""
        if node not in self._at_pairs:
            self._at_pairs[node] = self._evaluate(node)
        return self._at_pairs[node]

    def _evaluate(self, node: Any) -> tuple[fx.Node, int]:
        target, value = node.target, node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, Tensor):
            raise _UnknownError
        if target in (ATEN.arange.default, ATEN.arange.start, ATEN.arange.start_step):
            first = () if target is ATEN.arange.default else node.args[:1]
            step = node.args[2:] or (1,)
            if first not in ((), (0,)) or step != (1,) or not self._is_length(value.shape[0]):
                raise _UnknownError
            return self._emit(ATEN.to.dtype, self._reached(), value.dtype), -1
        if target is ATEN.slice.Tensor and is_fixed(self.program, node.args[0]):
            return self._looked_up(node)
        if target is ATEN.slice.Tensor and cuts_nothing(node):
            return self._evaluated(node.args[0])
        if target is ATEN.unsqueeze.default:
            source, dim = node.args
            inner, axis = self._evaluated(source)
            dim = dim % value.ndim
            at = len(shape_of(source)) + axis
            at += at >= dim
            return self._emit(ATEN.unsqueeze.default, inner, dim), at - value.ndim
        if target in (ATEN.transpose.int, ATEN.mT.default):
            inner, axis = self._evaluated(node.args[0])
            given = node.args[1:] or (-2, -1)
            ends = [d if d < 0 else d - value.ndim for d in given]
            axis = {ends[0]: ends[1], ends[1]: ends[0]}.get(axis, axis)
            return self._emit(ATEN.transpose.int, inner, ends[0] - 1, ends[1] - 1), axis
        if target is ATEN.sum.dim_IntList:
            return self._sum(node)
        if target is ATEN.einsum.default:
            return self._einsum(node)
        if target in SAME_ENTRIES or torch.Tag.pointwise in target.tags:
            return self._pointwise(node)
        raise _UnknownError

    def _looked_up(self, node: Any) -> tuple[fx.Node, int]:
        """The first entries of a weight, by their lags."""
        table = node.args[0]
        dim = argument(node, 1, "dim", 0) % len(shape_of(table))
        start, step = argument(node, 2, "start"), argument(node, 4, "step", 1)
        if start not in (None, 0) or step != 1 or not self._is_length(length_of(node, dim)):
            raise _UnknownError
        found = self._emit(ATEN.index.Tensor, table, [None] * dim + [self._reached()])
        return self._emit(ATEN.movedim.int, found, dim + 1, -1), dim - len(shape_of(table))

    def _sum(self, node: Any) -> tuple[fx.Node, int]:
        source, over = node.args[0], node.args[1]
        inner, axis = self._evaluated(source)
        rank = len(shape_of(source))
        ends = [d if d < 0 else d - rank for d in over]
        if not ends or axis in ends:
            raise _UnknownError
        keep = bool(argument(node, 2, "keepdim", default=False))
        new = self._emit(ATEN.sum.dim_IntList, inner, [d - 1 for d in ends], keep, **node.kwargs)
        return new, axis if keep else axis + sum(d > axis for d in ends)

    def _einsum(self, node: Any) -> tuple[fx.Node, int]:
        """A sum of products by letters, one operand with lags."""
        equation, operands = node.args[0].replace(" ", ""), node.args[1]
        given, _, result = equation.partition("->")
        terms = given.split(",")
        moving = [i for i, each in enumerate(operands) if not is_fixed(self.program, each)]
        if len(moving) != 1 or not result or "." in equation:
            raise _UnknownError
        inner, axis = self._evaluated(operands[moving[0]])
        lag = terms[moving[0]][axis]
        if given.count(lag) != 1 or any(len(set(each)) != len(each) for each in (*terms, result)):
            raise _UnknownError
        over = sorted(set(given) - set(result) - {","})
        if lag not in result:
            raise _UnknownError
        order = [*over, *result]
        factors = []
        for i, (operand, letters) in enumerate(zip(operands, terms, strict=True)):
            new = inner if i in moving else self._emit(ATEN.unsqueeze.default, operand, -1)
            axes = [letters.index(each) for each in order if each in letters]
            new = self._emit(ATEN.permute.default, new, [*axes, len(letters)])
            for place, each in enumerate(order):
                if each not in letters:
                    new = self._emit(ATEN.unsqueeze.default, new, place)
            factors.append(new)
        total = factors[0]
        for each in factors[1:]:
            total = self._emit(ATEN.mul.Tensor, total, each)
        if over:
            total = self._emit(ATEN.sum.dim_IntList, total, list(range(len(over))))
        return total, result.index(lag) - len(result)

    def _pointwise(self, node: Any) -> tuple[fx.Node, int]:
        axes: set[int] = set()

        def at_pairs(each: fx.Node) -> fx.Node:
            if is_fixed(self.program, each):
                return self._emit(ATEN.unsqueeze.default, each, -1)
            new, axis = self._evaluated(each)
            axes.add(axis)
            return new

        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise _UnknownError
        args, kwargs = fx.map_arg((node.args, node.kwargs), at_pairs)
        if len(axes) != 1:
            raise _UnknownError
        return self._emit(node.target, *args, **kwargs), axes.pop()
