"""A value of all iterations of a loop at once, and its axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import SymInt

from .terms import Term


@dataclass(frozen=True)
class PerIteration:
    """A value of all iterations: `term` is ``[batch or 1, i or 1, ...]``.

    `shape` is its own, of the last iteration; `batch` and `grown` are axes of that, the latter the
    one of tokens so far; `zero` tells that entries of tokens which an iteration does not have are.
    """

    term: Term
    shape: tuple[int | SymInt, ...]
    batch: int | None
    grown: int | None = None
    each: bool = False  # it differs from iteration to iteration
    zero: bool = False

    @property
    def rank(self) -> int:
        """Axes that it has of its own."""
        return len(self.shape)

    def at(self, axis: int) -> int:
        """Where its own axis stands."""
        if axis == self.batch:
            return 0
        return 2 + axis - (self.batch is not None and axis > self.batch)


@dataclass(frozen=True)
class Line:
    """A number that grows with the iteration: ``start + step * i``."""

    start: float
    step: float


def batch_of(shape: Sequence[Any]) -> int | None:
    """The axis of the batch."""
    return next((a for a, dim in enumerate(shape) if isinstance(dim, SymInt)), None)


def ones(rank: int, place: int, size: int) -> list[int]:
    """A shape of `rank` ones, but for one place."""
    return [size if axis == place else 1 for axis in range(rank)]


def alike_shapes(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are equal, their free sizes as they are written."""
    return len(a) == len(b) and all(
        x == y if isinstance(x, int) and isinstance(y, int) else _dim(x) == _dim(y)
        for x, y in zip(a, b, strict=True)
    )


def _dim(size: Any) -> Any:
    return size if isinstance(size, int) else size.node.expr


def leading(shape: Sequence[Any], merged: Any) -> int:
    """How many of the first axes, more than one, make up `merged`; 0 for none."""
    product = _dim(shape[0])
    for count, dim in enumerate(shape[1:], 2):
        product = product * _dim(dim)
        if product == _dim(merged):
            return count
    return 0


def op_name(op: Any) -> str:
    """An operator in an error's words."""
    return str(op).removesuffix(".default")
