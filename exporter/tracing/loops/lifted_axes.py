"""What an iteration computes over all tokens before it, for all iterations at once.

A value of iteration i that has an entry for each token j up to its own has, here, one for every
pair (i, j).  It is laid out ``[batch, i, ...]``, both of size one where it depends on neither, so
that operators broadcast; in the source it had no axis i, and its batch stood anywhere.  Entries of
tokens that an iteration does not have are something or other until they are summed up, or taken
the largest of: each such operator leaves them out first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from .lifted_products import ordered, product
from .lifted_values import Line, PerIteration, alike_shapes, batch_of, leading, ones, op_name
from .loop_streams import PartedError
from .terms import Term, Terms, aten
from .tidy import SELECT, UNSQUEEZE

LOWEST = -math.inf


class Lifting:
    """Operators on `PerIteration` values; `lead` is how many tokens iteration 0 has, less one."""

    def __init__(self, terms: Terms, lead: int) -> None:
        self.terms = terms
        self._lead = lead
        self._rules: dict[Any, Callable[..., PerIteration]] = {
            aten.softmax.int: self._softmax,
            aten.sum.dim_IntList: self._sum,
            aten.mean.dim: self._mean,
            aten.amax.default: self._amax,
            aten.amin.default: self._amin,
            aten.logsumexp.default: self._logsumexp,
            aten.max.dim: self._amax,
            aten.min.dim: self._amin,
            aten.unsqueeze.default: self._unsqueeze,
            aten.squeeze.dim: self._squeeze,
            aten.transpose.int: self._transpose,
            aten.permute.default: self._permute,
            aten.expand.default: self._expand,
            aten.view.default: self._view,
            aten.reshape.default: self._view,
            aten.select.int: self._select,
            aten.slice.Tensor: self._slice,
            aten.cat.default: self._cat,
            aten.matmul.default: self._matmul,
            aten.bmm.default: self._matmul,
            aten.mm.default: self._matmul,
            aten.linear.default: self._linear,
            aten.einsum.default: self._einsum,
            aten.scaled_dot_product_attention.default: self._attention,
            aten.flip.default: self._flip,
            aten.arange.start: self._count,
            aten.arange.start_step: self._count,
        }

    def whole(self, term: Term, *, grown: int | None = None, each: bool = False) -> PerIteration:
        """A value as it is; where it is for `each` iteration, these are its axis 0, all of them."""
        shape = term.shape[1:] if each else term.shape
        batch = batch_of(shape)
        given, lead = term, int(each)
        if batch is not None:
            order = [
                batch + lead,
                *range(lead),
                *(a + lead for a in range(len(shape)) if a != batch),
            ]
            given = ordered(self.terms, given, order)
        else:
            given = self.terms(UNSQUEEZE, given, 0)
        if not each:
            given = self.terms(UNSQUEEZE, given, 1)
        return PerIteration(given, tuple(shape), batch, grown, each)

    def apply(
        self, call: Term, leaves: Sequence[Any], grown: int | None, sample: Term
    ) -> PerIteration:
        """The operator of `call` on `leaves`: lifted values, lines and constants.

        `call` is the computation of the last iteration, `sample` what is taken of its results, and
        `grown` the axis of tokens of that.
        """
        args, kwargs = pytree.tree_unflatten(list(leaves), call.spec)
        op = call.op
        if op in self._rules:
            found = self._rules[op](sample, *args, **kwargs)
        elif isinstance(op, OpOverload) and torch.Tag.pointwise in op.tags:
            found = self._pointwise(sample, args, kwargs)
        elif op is aten._to_copy.default:  # noqa: SLF001
            x = args[0]
            found = replace(x, term=self.terms(op, x.term, **kwargs))
        else:
            raise PartedError(f"takes what it has of all tokens so far through {op_name(op)}")
        return replace(found, grown=grown)

    def own(self, value: PerIteration) -> Term:
        """``[i, ...]`` of a value for each iteration, its batch where it was."""
        if value.batch is None:
            return self.terms(SELECT, value.term, 0, 0)
        rest = [a + 2 for a in range(value.rank - 1)]
        return ordered(self.terms, value.term, [1, *rest[: value.batch], 0, *rest[value.batch :]])

    def _iterations(self) -> Term:
        """The number of each iteration: [1, T]."""
        count = self.terms(aten.arange.default, self.terms.time)
        return self.terms(UNSQUEEZE, count, 0)

    def _has(self, value: PerIteration) -> Term:
        """Whether an iteration has a token, for all pairs, against the axes of `value`."""
        assert value.grown is not None
        place, rank = value.at(value.grown), len(value.term.shape)
        tokens, rows = self.terms(aten.arange.default, self._tokens(value)), self._iterations()
        if self._lead:
            rows = self.terms(aten.add.Tensor, rows, self._lead)
        pairs = self.terms(UNSQUEEZE, tokens, 0), self.terms(aten.transpose.int, rows, 0, 1)
        mask = self.terms(aten.le.Tensor, *pairs)
        for axis in range(rank):
            if axis not in (1, place):
                mask = self.terms(UNSQUEEZE, mask, axis)
        return mask

    def _tokens(self, value: PerIteration) -> int:
        size = value.term.shape[value.at(value.grown)]  # type: ignore[arg-type]
        assert isinstance(size, int)
        return size

    def _without(self, value: PerIteration, number: float) -> Term:
        """`value` with `number` for the tokens that an iteration does not have."""
        if number == 0 and value.zero:
            return value.term
        fill = self.terms.filled([], number, value.term.value)
        return self.terms(aten.where.self, self._has(value), value.term, fill)

    # what takes entries together

    def _over(self, value: PerIteration, dims: Any) -> tuple[list[int], bool]:
        """Its axes as they stand, and whether that of tokens is among them."""
        given = dims if isinstance(dims, list | tuple) else [dims]
        own = [dim % value.rank for dim in given] if given else list(range(value.rank))
        if value.batch in own:
            raise PartedError("takes rows of the batch together")
        return [value.at(axis) for axis in own], value.grown in own

    def _reduced(
        self, sample: Term, x: PerIteration, dims: Any, keep: bool, number: float, op: Any
    ) -> PerIteration:
        axes, mixes = self._over(x, dims)
        given = self._without(x, number) if mixes else x.term
        result = self.terms(op, given, axes, keep)
        batch = batch_of(sample.shape)
        zero = x.zero and not mixes and op is aten.sum.dim_IntList
        return PerIteration(result, sample.shape, batch, None, x.each or mixes, zero)

    def _sum(
        self, sample: Term, x: PerIteration, dims: Any, keep: bool = False, **kwargs: Any
    ) -> PerIteration:
        if kwargs.get("dtype"):
            raise PartedError("sums up in another type")
        return self._reduced(sample, x, dims, keep, 0, aten.sum.dim_IntList)

    def _mean(
        self, sample: Term, x: PerIteration, dims: Any, keep: bool = False, **_: Any
    ) -> PerIteration:
        axes, mixes = self._over(x, dims)
        if not mixes:
            return self._reduced(sample, x, dims, keep, 0, aten.mean.dim)
        total = self._reduced(sample, x, dims, keep, 0, aten.sum.dim_IntList)
        others = math.prod(int(x.term.shape[a]) for a in axes) // self._tokens(x)
        line = self._numbers(Line((1 + self._lead) * others, others), total)
        return replace(total, term=self.terms(aten.div.Tensor, total.term, line))

    def _amax(
        self, sample: Term, x: PerIteration, dims: Any = (), keep: bool = False
    ) -> PerIteration:
        return self._reduced(sample, x, dims, keep, LOWEST, aten.amax.default)

    def _amin(
        self, sample: Term, x: PerIteration, dims: Any = (), keep: bool = False
    ) -> PerIteration:
        return self._reduced(sample, x, dims, keep, -LOWEST, aten.amin.default)

    def _logsumexp(
        self, sample: Term, x: PerIteration, dims: Any, keep: bool = False
    ) -> PerIteration:
        return self._reduced(sample, x, dims, keep, LOWEST, aten.logsumexp.default)

    def _softmax(self, sample: Term, x: PerIteration, dim: int, dtype: Any = None) -> PerIteration:
        (axis,), mixes = self._over(x, dim)
        given = self._without(x, LOWEST) if mixes else x.term
        result = self.terms(aten.softmax.int, given, axis, *([dtype] if dtype else []))
        return PerIteration(
            result, sample.shape, x.batch, None, x.each or mixes, zero=mixes or x.zero
        )

    # what goes entry by entry

    def _pointwise(self, sample: Term, args: Any, kwargs: dict[str, Any]) -> PerIteration:
        rank, batch = len(sample.shape), batch_of(sample.shape)
        values = [x for x in args if isinstance(x, PerIteration)]
        like = PerIteration(sample, sample.shape, batch)
        given = []
        for x in args:
            if isinstance(x, PerIteration):
                given.append(self._aligned(x, rank, batch))
            elif isinstance(x, Line):
                given.append(self._numbers(x, like))
            else:
                given.append(x)
        op: Any = sample.op
        if any(isinstance(x, Line) for x in args):
            op = getattr(op.overloadpacket, "Tensor", None)
            if op is None:
                raise PartedError(f"takes its position into {op_name(sample.op)}")
        each = any(x.each for x in values) or any(isinstance(x, Line) for x in args)
        zeros = [x for x in values if x.zero and x.grown is not None]
        zero = bool(zeros) and sample.op is aten.mul.Tensor
        if zeros and sample.op is aten.div.Tensor and zeros[0] is args[0]:
            zero = all(x is zeros[0] or x.grown is None for x in values)
        return PerIteration(self.terms(op, *given, **kwargs), sample.shape, batch, None, each, zero)

    def _numbers(self, line: Line, like: PerIteration) -> Term:
        """A number of each iteration, against the axes of `like`."""
        rank = 2 + like.rank - (like.batch is not None)
        term = self.terms(aten.view.default, self._iterations(), ones(rank, 1, -1))
        dtype = like.term.value.dtype
        if dtype.is_floating_point:
            term = self.terms(aten._to_copy.default, term, dtype=dtype)  # noqa: SLF001
        if line.step != 1:
            term = self.terms(aten.mul.Tensor, term, line.step)
        return self.terms(aten.add.Tensor, term, line.start) if line.start else term

    def _aligned(self, x: PerIteration, rank: int, batch: int | None) -> Term:
        """`x` with the axes of what has `rank` of them, to meet it axis for axis."""
        term, own, more = x.term, x.rank, rank - x.rank
        if x.batch is None and batch is not None and batch >= more:
            term = self.terms(aten.squeeze.dim, term, 2 + batch - more)  # one row for all
            own -= 1
        elif x.batch is not None:
            if batch is None or x.batch + more != batch:
                raise PartedError("lets rows of the batch meet other axes")
            own -= 1
        for _ in range(rank - (batch is not None) - own):
            term = self.terms(UNSQUEEZE, term, 2)
        return term

    def _count(self, sample: Term, start: Any, _end: Any, step: int = 1, **_: Any) -> PerIteration:
        """Numbers of tokens, counted from one that is another at each iteration."""
        if isinstance(step, Line) or not isinstance(start, Line):
            raise PartedError("counts the tokens so far in steps of another size each time")
        count = self.whole(self.terms(aten.arange.default, int(sample.shape[0])))
        term = count.term if step == 1 else self.terms(aten.mul.Tensor, count.term, step)
        begin = self._numbers(start, PerIteration(sample, sample.shape, None))
        return PerIteration(
            self.terms(aten.add.Tensor, term, begin), sample.shape, None, None, each=True
        )

    def _flip(self, sample: Term, x: PerIteration, axes: Sequence[int]) -> PerIteration:
        """Numbers of tokens, counted backwards from the last: how far each is away."""
        given = sample.leaves[0]
        counts = given.op in (aten.arange.default, aten.arange.start)
        first = given.leaves[0] if given.op is aten.arange.start else 0
        if x.grown in [axis % x.rank for axis in axes] and not counts:
            raise PartedError("takes the tokens so far backwards")
        if not counts:
            term = self.terms(aten.flip.default, x.term, [x.at(axis % x.rank) for axis in axes])
            return replace(x, term=term)
        last = self._numbers(
            Line(self._lead + 2 * first, 1), PerIteration(sample, sample.shape, None)
        )
        term = self.terms(aten.sub.Tensor, last, x.term)
        return PerIteration(term, sample.shape, None, None, each=True)

    # what moves entries

    def _unsqueeze(self, sample: Term, x: PerIteration, axis: int) -> PerIteration:
        axis %= x.rank + 1
        before = axis - (x.batch is not None and axis > x.batch)
        term = self.terms(UNSQUEEZE, x.term, 2 + before)
        return replace(x, term=term, shape=sample.shape, batch=batch_of(sample.shape))

    def _squeeze(self, sample: Term, x: PerIteration, axis: int) -> PerIteration:
        term = self.terms(aten.squeeze.dim, x.term, x.at(axis % x.rank))
        return replace(x, term=term, shape=sample.shape, batch=batch_of(sample.shape))

    def _transpose(self, sample: Term, x: PerIteration, a: int, b: int) -> PerIteration:
        order = list(range(x.rank))
        a, b = a % x.rank, b % x.rank
        order[a], order[b] = b, a
        return self._permute(sample, x, order)

    def _permute(self, sample: Term, x: PerIteration, order: Sequence[int]) -> PerIteration:
        rest = [x.at(axis % x.rank) for axis in order if axis % x.rank != x.batch]
        term = ordered(self.terms, x.term, [0, 1, *rest])
        return replace(x, term=term, shape=sample.shape, batch=batch_of(sample.shape))

    def _expand(self, sample: Term, x: PerIteration, *_: Any, **__: Any) -> PerIteration:
        rank, batch = len(sample.shape), batch_of(sample.shape)
        term = self._aligned(x, rank, batch)
        sizes = [self.terms.size(dim) for a, dim in enumerate(sample.shape) if a != batch]
        rows: Any = -1 if batch is None else self.terms.size(sample.shape[batch])
        term = self.terms(aten.expand.default, term, [rows, -1, *sizes])
        return PerIteration(term, sample.shape, batch, None, x.each, x.zero and x.grown is not None)

    def _view(self, sample: Term, x: PerIteration, *_: Any, **__: Any) -> PerIteration:
        """Axes merged and taken apart, those of tokens and of rows left."""
        shape, batch = sample.shape, batch_of(sample.shape)
        each = x.term.shape[1]
        if batch == x.batch and (
            batch is None or (alike_shapes(shape[: batch + 1], x.shape[: batch + 1]))
        ):
            rest = [dim for axis, dim in enumerate(shape) if axis != batch]
            rows: Any = 1 if batch is None else self.terms.size(shape[batch])
            term = self.terms(aten.view.default, x.term, [rows, each, *rest])
        elif x.batch == batch == 0 and (count := leading(x.shape, shape[0])):
            # rows and what follows them become one axis
            order = [0, *range(2, 1 + count), 1, *range(1 + count, len(x.term.shape))]
            rows = self.terms.size(shape[0])
            moved = ordered(self.terms, x.term, order)
            term = self.terms(aten.view.default, moved, [rows, each, *shape[1:]])
        elif x.batch == batch == 0 and (count := leading(shape, x.shape[0])):
            sizes = [self.terms.size(shape[0]), *shape[1:count], each, *shape[count:]]
            apart = self.terms(aten.view.default, x.term, sizes)
            order = [0, count, *range(1, count), *range(count + 1, len(shape) + 1)]
            term = ordered(self.terms, apart, order)
        else:
            raise PartedError("merges rows of the batch with what it has of all tokens so far")
        return PerIteration(term, shape, batch, None, x.each, x.zero and x.grown is not None)

    def _select(self, sample: Term, x: PerIteration, axis: int, index: Any) -> PerIteration:
        axis %= x.rank
        batch = batch_of(sample.shape)
        if axis != x.grown:
            term = self.terms(SELECT, x.term, x.at(axis), index)
            return replace(x, term=term, shape=sample.shape, batch=batch)
        tokens = self._tokens(x)
        if not isinstance(index, Line) and index >= 0:  # of the first tokens
            term = self.terms(SELECT, x.term, x.at(axis), index)
            return PerIteration(term, sample.shape, batch, None, x.each)
        last = isinstance(index, Line) and index.step == 1 and index.start == 0
        if x.each or self._lead or not last or tokens != self.terms.time:
            raise PartedError("takes one token of those so far after it computed with all of them")
        term = self.terms(aten.squeeze.dim, x.term, 1)
        place = x.at(axis) - 1
        order = [0, place, *(a for a in range(1, len(term.shape)) if a != place)]
        return PerIteration(ordered(self.terms, term, order), sample.shape, batch, None, each=True)

    def _slice(self, sample: Term, x: PerIteration, axis: int = 0, *bounds: Any) -> PerIteration:
        axis %= x.rank
        if axis == x.grown or any(isinstance(each, Line) for each in bounds):
            raise PartedError("takes some of the tokens so far")
        term = self.terms(aten.slice.Tensor, x.term, x.at(axis), *bounds)
        return replace(x, term=term, shape=sample.shape)

    def _cat(self, sample: Term, parts: Sequence[PerIteration], axis: int = 0) -> PerIteration:
        rank, batch = len(sample.shape), batch_of(sample.shape)
        axis %= rank
        if any(part.grown == axis for part in parts) or axis == batch:
            raise PartedError("joins tokens so far with others")
        each = any(part.each for part in parts)
        shapes = [part.shape for part in parts]
        sizes = [self.terms.size(dim) for a, dim in enumerate(sample.shape) if a != batch]
        place = axis - (batch is not None and axis > batch)
        given = []
        for part, shape in zip(parts, shapes, strict=True):
            dims = [*sizes]
            dims[place] = shape[axis]
            rows: Any = -1 if batch is None else self.terms.size(sample.shape[batch])
            time = self.terms.time if each else -1
            aligned = self._aligned(part, rank, batch)
            given.append(self.terms(aten.expand.default, aligned, [rows, time, *dims]))
        return PerIteration(
            self.terms(aten.cat.default, given, 2 + place), sample.shape, batch, None, each
        )

    # products

    def _linear(
        self, sample: Term, x: PerIteration, weight: PerIteration, bias: Any = None
    ) -> PerIteration:
        if x.batch == x.rank - 1 or x.grown == x.rank - 1:
            raise PartedError("multiplies what it has of all tokens so far by a weight")
        given = [self._plain(each) for each in (weight, bias) if each is not None]
        term = self.terms(aten.linear.default, x.term, *given)
        zero = x.zero and x.grown is not None and bias is None
        return PerIteration(term, sample.shape, batch_of(sample.shape), None, x.each, zero)

    def _plain(self, x: PerIteration) -> Term:
        """What is the same for all rows and iterations, as it was."""
        if x.each or x.batch is not None:
            raise PartedError("multiplies by a weight that is none")
        return self.terms(SELECT, self.terms(SELECT, x.term, 0, 0), 0, 0)

    def _matmul(self, sample: Term, a: PerIteration, b: PerIteration) -> PerIteration:
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        batch = [next(letters) for _ in range(max(a.rank, b.rank, 2) - 2)]
        row, inner, column = (next(letters) for _ in range(3))
        left = inner if a.rank == 1 else "".join([*batch[len(batch) + 2 - a.rank :], row, inner])
        right = (
            inner if b.rank == 1 else "".join([*batch[len(batch) + 2 - b.rank :], inner, column])
        )
        result = "".join([*batch, row * (a.rank > 1), column * (b.rank > 1)])
        return self._einsum(sample, f"{left},{right}->{result}", [a, b])

    def _einsum(
        self, sample: Term, equation: str, operands: Sequence[PerIteration], **_: Any
    ) -> PerIteration:
        """Products and sums, each operand with its rows and iterations in front."""
        equation = equation.replace(" ", "")
        given, arrow, result = equation.partition("->")
        subscripts = given.split(",")
        if not arrow or "." in equation or any(len(s) != len(set(s)) for s in subscripts):
            raise PartedError(f"takes what it has of all tokens so far through {equation!r}")
        rows = {
            s[x.batch] for s, x in zip(subscripts, operands, strict=True) if x.batch is not None
        }
        if len(rows) > 1 or not rows <= set(result):
            raise PartedError("takes rows of the batch together")
        row = next(iter(rows), None)
        free = iter(sorted(set("ABCDEFGHIJKLMNOPQRSTUVWXYZ") - set(equation)))
        iteration = next(free)
        operands = self._masked(subscripts, operands, result)
        each = any(x.each for x in operands)
        terms, parts = [], []
        for letters, x in zip(subscripts, operands, strict=True):
            term, named = x.term, letters.replace(row or " ", "")
            if x.each:
                named = iteration + named
            else:
                term = self.terms(aten.squeeze.dim, term, 1)
            if row is not None and row in letters:
                if x.batch is None:
                    raise PartedError("lets rows of the batch meet other axes")
                named = row + named
            else:
                term = self.terms(aten.squeeze.dim, term, 0)
            terms.append(term)
            parts.append(named)
        given_back = iteration * each + result.replace(row or " ", "")
        found = product(self.terms, parts, (row or "") + given_back, terms)
        if row is None:
            found = self.terms(UNSQUEEZE, found, 0)
        if not each:
            found = self.terms(UNSQUEEZE, found, 1)
        zero = any(
            x.zero and x.grown is not None and s[x.grown] in result
            for s, x in zip(subscripts, operands, strict=True)
        )
        return PerIteration(found, sample.shape, batch_of(sample.shape), None, each, zero)

    def _masked(
        self, subscripts: Sequence[str], operands: Sequence[PerIteration], result: str
    ) -> Sequence[PerIteration]:
        """The operands, one of them without the tokens that an iteration does not have."""
        summed = {
            s[x.grown]
            for s, x in zip(subscripts, operands, strict=True)
            if x.grown is not None and s[x.grown] not in result
        }
        found = list(operands)
        for letter in summed:
            holders = [
                n
                for n, x in enumerate(found)
                if x.grown is not None and subscripts[n][x.grown] == letter
            ]
            if any(found[n].zero for n in holders):
                continue
            n = next((n for n in holders if found[n].each), holders[0])
            found[n] = replace(found[n], term=self._without(found[n], 0), each=True, zero=True)
        return found

    def _attention(
        self,
        sample: Term,
        query: PerIteration,
        key: PerIteration,
        value: PerIteration,
        mask: Any = None,
        dropout: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> PerIteration:
        if mask is not None or dropout or is_causal or enable_gqa or query.grown == query.rank - 2:
            raise PartedError("takes a mask or groups of heads to the tokens so far")
        scale = 1 / math.sqrt(int(query.shape[-1])) if scale is None else scale
        batch = [chr(ord("a") + n) for n in range(query.rank - 2)]
        stem = "".join(batch)
        turned = self.terms.plain(aten.transpose.int, self._sample(key), -2, -1)
        like = self.terms.plain(aten.matmul.default, self._sample(query), turned)
        scores = self._einsum(like, f"{stem}xz,{stem}yz->{stem}xy", [query, key])
        scores = replace(
            scores, term=self.terms(aten.mul.Tensor, scores.term, scale), grown=scores.rank - 1
        )
        weights = replace(self._softmax(like, scores, -1), grown=scores.rank - 1)
        return self._einsum(sample, f"{stem}xy,{stem}yz->{stem}xz", [weights, value])

    def _sample(self, x: PerIteration) -> Term:
        """A tensor of its own shape."""
        return self.terms.filled(x.shape, 0, x.term.value)
