"""What values with an axis of lags can be: lines, sums of exponentials, tables.

Numbers are float64 or complex128.  Every tensor of a value has the value's rank, with size 1 along
the axis of lags; a sum has one axis more, of its terms, at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

MOST_TERMS = 4096


class UnreadError(Exception):
    """A value is no sum of exponentials by the rules that are known."""


@dataclass(frozen=True)
class LagLine:
    """offset + slope l; both have the rank of the value, and size 1 along the axis of lags."""

    offset: Tensor
    slope: Tensor
    axis: int


@dataclass(frozen=True)
class LagSum:
    """Sum over the last axis of weight ratio^l, of it the real part where `real`.

    Without their last axis both have the rank of the value, and size 1 along the axis of lags.
    """

    weight: Tensor
    ratio: Tensor
    axis: int
    real: bool


@dataclass(frozen=True)
class LagTable:
    """The values at all lags that there are."""

    values: Tensor
    axis: int

    def first(self, length: int) -> Tensor:
        """The values at the first `length` of them."""
        return self.values.narrow(self.axis, 0, length)

    @property
    def length(self) -> int:
        """How many lags there are."""
        return self.values.shape[self.axis]


Read = LagLine | LagSum | LagTable


class Reading(Protocol):
    """Reads nodes of a program."""

    def of(self, node: Any) -> Read:
        """What `node` is at each lag."""

    def given(self, value: Any) -> Tensor | Read:
        """An operand: a number, or something with lags."""

    def operands(self, node: fx.Node) -> list[Any]:
        """The operands of a node of two, of one rank, with lags along one axis."""


def number(value: Any) -> Tensor:
    """A number of Python as a tensor."""
    kind = torch.complex128 if isinstance(value, complex) else torch.float64
    return torch.tensor(value, dtype=kind)


def of_rank(value: Tensor | Read, rank: int) -> Any:
    """`value` with axes of size 1 in front, as broadcasting adds them."""

    def wide(x: Tensor, more: int = 0) -> Tensor:
        return x.reshape(*[1] * (rank + more - x.dim()), *x.shape)

    if isinstance(value, Tensor):
        return wide(value)
    return mapped(value, wide, lambda x: wide(x, 1), value.axis)


def mapped(
    value: Read, plain: Callable[[Tensor], Tensor], terms: Callable[[Tensor], Tensor], axis: int
) -> Read:
    """`value` with its tensors changed: those without an axis of terms, and those with one."""
    if isinstance(value, LagLine):
        return LagLine(plain(value.offset), plain(value.slope), axis)
    if isinstance(value, LagTable):
        return LagTable(plain(value.values), axis)
    return LagSum(terms(value.weight), terms(value.ratio), axis, value.real)


def full(value: LagSum) -> LagSum:
    """A real part as the sum of both halves."""
    if not value.real or not (value.weight.is_complex() or value.ratio.is_complex()):
        return LagSum(value.weight, value.ratio, value.axis, real=False)
    weight, ratio = (torch.cat((x, x.conj()), -1) for x in (value.weight / 2, value.ratio))
    return LagSum(weight, ratio, value.axis, real=False)


def scaled(value: LagSum, by: Tensor) -> LagSum:
    """Each term times a number, complex ones of real parts included."""
    value = full(value) if by.is_complex() else value
    return LagSum(value.weight * by[..., None], value.ratio, value.axis, value.real)


def together(*shapes: torch.Size) -> torch.Size:
    """The shape that tensors of these have beside each other."""
    return torch.Size(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
