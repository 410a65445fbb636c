"""How operators on single entries act on lines, sums of exponentials and tables."""

from typing import Any

import torch
from torch import Tensor, fx

from .causal_convolution import ATEN
from .kernel_forms import (
    MOST_TERMS,
    LagLine,
    LagSum,
    LagTable,
    Read,
    Reading,
    UnreadError,
    full,
    mapped,
    scaled,
    together,
)
from .row_rules import BEHIND


def plus(reader: Reading, node: Any, sign: int = 1) -> Read:
    """A sum, or with `sign` -1 a difference."""
    left, right = reader.operands(node)
    if isinstance(left, LagTable) or isinstance(right, LagTable):
        return _of_tables(node, left, right)
    if isinstance(left, LagSum) and isinstance(right, LagSum):
        left, right = (full(each) if left.real != right.real else each for each in (left, right))
        shape = together(left.weight.shape[:-1], right.weight.shape[:-1])
        parts = [(left.weight, left.ratio), (sign * right.weight, right.ratio)]
        weight, ratio = (
            torch.cat([part[i].expand(*shape, part[i].shape[-1]) for part in parts], -1)
            for i in (0, 1)
        )
        return LagSum(weight, ratio, left.axis, left.real)
    if isinstance(left, LagSum) or isinstance(right, LagSum):
        total, other = (left, right) if isinstance(left, LagSum) else (right, left)
        if not isinstance(other, Tensor):
            raise UnreadError
        mine, theirs = (1, sign) if total is left else (sign, 1)
        assert isinstance(total, LagSum)
        real = total.real and not other.is_complex()
        total = total if real == total.real else full(total)
        shape = together(total.weight.shape[:-1], other.shape)
        kept = total.weight.expand(*shape, total.weight.shape[-1])
        level = (theirs * other).expand(shape)[..., None]
        weight = torch.cat((mine * kept, level.to(kept.dtype)), -1)
        ratio = torch.cat((total.ratio.expand(kept.shape), torch.ones_like(level)), -1)
        return LagSum(weight, ratio, total.axis, real)
    lines = [_line(each) for each in (left, right)]
    axis = next(each.axis for each in (left, right) if isinstance(each, LagLine))
    return LagLine(lines[0][0] + sign * lines[1][0], lines[0][1] + sign * lines[1][1], axis)


def less_from(reader: Reading, node: Any) -> Read:
    """What is left of a number: its second operand less the first."""
    if not isinstance(node.args[1], int | float) or len(node.args) > 2:
        raise UnreadError
    left = negated(reader, node)
    if isinstance(left, LagTable):
        return LagTable(left.values + node.args[1], left.axis)
    if isinstance(left, LagLine):
        return LagLine(left.offset + node.args[1], left.slope, left.axis)
    level = torch.full_like(left.weight[..., :1], node.args[1])
    ratio = left.ratio.expand(*left.weight.shape[:-1], left.ratio.shape[-1])
    weight = left.weight.expand(ratio.shape)
    return LagSum(
        torch.cat((weight, level), -1),
        torch.cat((ratio, torch.ones_like(ratio[..., :1])), -1),
        left.axis,
        left.real,
    )


def _line(value: Tensor | Read) -> tuple[Tensor, Tensor]:
    if isinstance(value, Tensor):
        return value, torch.zeros_like(value)
    assert isinstance(value, LagLine)
    return value.offset, value.slope


def _of_tables(node: Any, *operands: Tensor | Read) -> LagTable:
    """An operator on tables and numbers, entry by entry; of tables as long as the shortest one."""
    tables = [each for each in operands if isinstance(each, LagTable)]
    if any(isinstance(each, LagLine | LagSum) for each in operands):
        raise UnreadError
    axis, length = tables[0].axis, min(each.length for each in tables)
    given = [each.first(length) if isinstance(each, LagTable) else each for each in operands]
    return LagTable(node.target(*given), axis)


def each_entry(reader: Reading, node: Any) -> LagTable:
    """Any operator on tables that keeps lags apart: on single entries, or on axes behind them."""
    given, axes = _tables_of(reader, node)
    if len(axes) != 1:
        raise UnreadError
    axis = axes.pop()
    if torch.Tag.pointwise not in node.target.tags:
        behind = BEHIND.get(node.target)
        if behind is None or axis >= -behind(node):
            raise UnreadError
    elif any(isinstance(x, Tensor) and x.dim() >= -axis and x.shape[axis] != 1 for x in given):
        raise UnreadError
    if torch.Tag.nondeterministic_seeded in node.target.tags:
        raise UnreadError
    length = min(each.length for each in given if isinstance(each, LagTable))
    values = iter([each.first(length) if isinstance(each, LagTable) else each for each in given])
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda _: next(values))
    return LagTable(node.target(*args, **kwargs), axis)


def _tables_of(reader: Reading, node: Any) -> tuple[list[Any], set[int]]:
    """The values of the nodes that `node` takes, in their order, and the axes of their lags."""
    given: list[Any] = []
    fx.map_arg((node.args, node.kwargs), lambda each: given.append(reader.given(each)))
    if any(isinstance(each, LagLine | LagSum) for each in given):
        raise UnreadError
    return given, {each.axis for each in given if isinstance(each, LagTable)}


def times(reader: Reading, node: Any) -> Read:
    """A product, of sums term by term."""
    left, right = reader.operands(node)
    if isinstance(left, LagTable) or isinstance(right, LagTable):
        return _of_tables(node, left, right)
    if isinstance(left, LagSum) and isinstance(right, LagSum):
        real = left.real and right.real
        left, right = left if real else full(left), full(right)  # Re(a) Re(b) = Re(a (b + b*) / 2)
        if left.weight.shape[-1] * right.weight.shape[-1] > MOST_TERMS:
            raise UnreadError
        weight, ratio = (
            (a[..., :, None] * b[..., None, :]).flatten(-2)
            for a, b in ((left.weight, right.weight), (left.ratio, right.ratio))
        )
        return LagSum(weight, ratio, left.axis, real)
    value, by = (right, left) if isinstance(left, Tensor) else (left, right)
    if not isinstance(by, Tensor) or isinstance(value, Tensor):
        raise UnreadError
    if isinstance(value, LagLine):
        return LagLine(value.offset * by, value.slope * by, value.axis)
    assert isinstance(value, LagSum)
    return scaled(value, by)


def divided(reader: Reading, node: Any) -> Read:
    """A value divided by a number."""
    value, by = reader.operands(node)
    if isinstance(value, Tensor) or not isinstance(by, Tensor) or len(node.args) > 2:
        raise UnreadError
    if isinstance(value, LagTable):
        return _of_tables(node, value, by)
    if isinstance(value, LagLine):
        return LagLine(value.offset / by, value.slope / by, value.axis)
    return scaled(value, 1 / by)


def negated(reader: Reading, node: Any) -> Read:
    """The negative."""
    value = reader.of(node.args[0])
    if isinstance(value, LagSum):
        return LagSum(-value.weight, value.ratio, value.axis, value.real)
    return mapped(value, torch.neg, torch.neg, value.axis)


def real_part(reader: Reading, node: Any) -> Read:
    """The real part."""
    value = reader.of(node.args[0])
    if isinstance(value, LagTable):
        return LagTable(value.values.real, value.axis)
    if isinstance(value, LagLine):
        return LagLine(value.offset.real, value.slope.real, value.axis)
    return LagSum(value.weight, value.ratio, value.axis, real=True)


def imaginary_part(reader: Reading, node: Any) -> Read:
    """The imaginary part of z as the real part of -i z."""
    value = reader.of(node.args[0])
    if isinstance(value, LagTable):
        return LagTable(value.values.imag, value.axis)
    if isinstance(value, LagLine):
        return LagLine(value.offset.imag, value.slope.imag, value.axis)
    return LagSum(-1j * value.weight, value.ratio, value.axis, real=True)


def complex_pair(reader: Reading, node: Any) -> Read:
    """A complex line of two."""
    left, right = reader.operands(node)
    if not all(isinstance(each, Tensor | LagLine) for each in (left, right)):
        raise UnreadError
    (a, b), (c, d) = _line(left), _line(right)
    axis = next(each.axis for each in (left, right) if isinstance(each, LagLine))
    return LagLine(a + 1j * c, b + 1j * d, axis)


def exponential(reader: Reading, node: Any) -> Read:
    """A line's exponential is one term."""
    value = reader.of(node.args[0])
    if isinstance(value, LagTable):
        return _of_tables(node, value)
    if not isinstance(value, LagLine):
        raise UnreadError
    real = not node.meta["val"].is_complex()
    return LagSum(value.offset.exp()[..., None], value.slope.exp()[..., None], value.axis, real)


def wave(reader: Reading, node: Any) -> Read:
    """Cosine, and sine as the real part of -i e^{i x}."""
    value = reader.of(node.args[0])
    if isinstance(value, LagTable):
        return _of_tables(node, value)
    if not isinstance(value, LagLine) or value.offset.is_complex() or value.slope.is_complex():
        raise UnreadError
    turned = 1.0 if node.target is ATEN.cos.default else -1j
    weight, ratio = (torch.exp(1j * x)[..., None] for x in (value.offset, value.slope))
    return LagSum(turned * weight, ratio, value.axis, real=True)


def polar(reader: Reading, node: Any) -> Read:
    """A number of a given size and angle."""
    size, angle = reader.operands(node)
    if not isinstance(angle, Tensor | LagLine):
        raise UnreadError
    offset, slope = _line(angle)
    weight, ratio = (torch.exp(1j * x)[..., None] for x in (offset, slope))
    if isinstance(size, Tensor):
        assert isinstance(angle, LagLine)
        return LagSum(size[..., None] * weight, ratio, angle.axis, real=False)
    if not isinstance(size, LagSum):
        raise UnreadError
    size = full(size)
    return LagSum(size.weight * weight, size.ratio * ratio, size.axis, real=False)


def power(reader: Reading, node: Any) -> Read:
    """A number to the power of a line."""
    base, exponent = reader.operands(node)
    if not isinstance(base, Tensor) or not isinstance(exponent, LagLine):
        raise UnreadError
    real = not node.meta["val"].is_complex()
    base = base[..., None]
    weight, ratio = base ** exponent.offset[..., None], base ** exponent.slope[..., None]
    if not all(bool(x.isfinite().all()) for x in (weight, ratio)):
        raise UnreadError
    return LagSum(weight, ratio, exponent.axis, real)
