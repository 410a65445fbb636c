"""How operators on axes act on lines, sums of exponentials and tables; sums over other axes."""

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from .causal_convolution import ATEN
from .kernel_forms import (
    MOST_TERMS,
    LagSum,
    Read,
    Reading,
    UnreadError,
    mapped,
    of_rank,
    scaled,
    together,
)
from .program_nodes import argument, shape_of, term


def unsqueezed(reader: Reading, node: Any) -> Read:
    """A further axis."""
    value = reader.of(node.args[0])
    rank = len(shape_of(node))
    dim = node.args[1] % rank
    place = rank - 1 + value.axis
    place += place >= dim
    return mapped(value, lambda x: x.unsqueeze(dim), lambda x: x.unsqueeze(dim), place - rank)


def dropped(reader: Reading, node: Any) -> Read:
    """One axis less: of size 1, or of whose entries one is taken."""
    source = node.args[0]
    value, rank = reader.of(source), len(shape_of(source))
    dim = node.args[1] % rank
    place = value.axis % rank
    taken = node.args[2] if node.target is ATEN.select.int else 0
    if len(shape_of(node)) == rank or dim == place:
        raise UnreadError

    def without(x: Tensor) -> Tensor:
        return x.select(dim, taken if x.shape[dim] > 1 else 0)

    return mapped(value, without, without, place - (dim < place) - (rank - 1))


def permuted(reader: Reading, node: Any) -> Read:
    """Axes in another order; those of terms stay last."""
    value = reader.of(node.args[0])
    rank = len(shape_of(node))
    if node.target is ATEN.permute.default:
        order = [dim % rank for dim in node.args[1]]
    elif node.target is ATEN.numpy_T.default:
        order = [*reversed(range(rank))]
    else:
        one, other = (dim % rank for dim in (node.args[1:] or (-2, -1)))
        order = list(range(rank))
        order[one], order[other] = other, one
    axis = order.index(value.axis % rank) - rank
    return mapped(value, lambda x: x.permute(order), lambda x: x.permute(*order, rank), axis)


def reshaped(reader: Reading, node: Any) -> Read:
    """Axes before and after that of lags by themselves; it stays whole."""
    value = reader.of(node.args[0])
    old, new = shape_of(node.args[0]), shape_of(node)
    place = value.axis % len(old)
    free = [i for i, size in enumerate(new) if not isinstance(size, int)]
    sizes = [size for i, size in enumerate(old) if i != place]
    if len(free) != 1 or not all(isinstance(size, int) for size in sizes):
        raise UnreadError
    at = free[0]
    if term(new[at]) != term(old[place]) or prod(old[:place]) != prod(new[:at]):
        raise UnreadError

    def shaped(x: Tensor, terms: tuple[int, ...] = ()) -> Tensor:
        length = x.shape[place]
        full = [length if i == place else size for i, size in enumerate(old)]
        wide = x.expand(*full, *terms)
        return wide.reshape(*[length if i == at else s for i, s in enumerate(new)], *terms)

    return mapped(value, shaped, lambda x: shaped(x, x.shape[-1:]), at - len(new))


def summed(reader: Reading, node: Any) -> Read:
    """The sum over axes without lags."""
    source = node.args[0]
    value, rank = reader.of(source), len(shape_of(source))
    dims = sorted({dim % rank for dim in argument(node, 1, "dim") or range(rank)})
    if value.axis % rank in dims or argument(node, 3, "dtype") is not None:
        raise UnreadError
    keep = bool(argument(node, 2, "keepdim", default=False))
    return _over(value, shape_of(source), dims, keep=keep)


def _over(value: Read, shape: Any, dims: list[int], *, keep: bool) -> Read:
    """The sum over `dims`, axes without lags of a value of `shape`."""
    rank = len(shape)
    before = value.axis % rank
    axis = value.axis if keep else before - sum(dim < before for dim in dims) - (rank - len(dims))

    def whole(x: Tensor, terms: tuple[int, ...] = ()) -> Tensor:
        full = [shape[i] if i in dims else x.shape[i] for i in range(rank)]
        return x.expand(*full, *terms)

    def total(x: Tensor) -> Tensor:
        return whole(x).sum(dims, keepdim=keep)

    def terms(x: Tensor) -> Tensor:
        order = [i for i in range(rank) if i not in dims]
        moved = whole(x, x.shape[-1:]).permute(*order, *dims, rank).flatten(len(order))
        if moved.shape[-1] > MOST_TERMS:
            raise UnreadError
        for dim in dims if keep else ():
            moved = moved.unsqueeze(dim)
        return moved

    return mapped(value, total, terms, axis)


def einsum(reader: Reading, node: Any) -> Read:
    """A sum of products by letters, one operand with lags."""
    equation, operands = node.args[0].replace(" ", ""), node.args[1]
    given, _, result = equation.partition("->")
    letters = given.split(",")
    known = [reader.given(each) for each in operands]
    moving = [i for i, each in enumerate(known) if not isinstance(each, Tensor)]
    if len(moving) != 1 or not result or "." in equation or len(known) != len(letters):
        raise UnreadError
    value: Any = known[moving[0]]
    lag = letters[moving[0]][value.axis]
    if given.count(lag) != 1 or lag not in result:
        raise UnreadError
    if any(len(set(each)) != len(each) for each in (*letters, result)):
        raise UnreadError
    order = [*result, *sorted(set(given) - set(result) - {","})]
    sizes = {
        letter: size
        for operand, named in zip(operands, letters, strict=True)
        for letter, size in zip(named, shape_of(operand), strict=True)
    }

    def laid(x: Tensor, named: str, more: int = 0) -> Tensor:
        axes = [named.index(letter) for letter in order if letter in named]
        x = x.permute(*axes, *[len(named)] * more)
        for place, letter in enumerate(order):
            x = x if letter in named else x.unsqueeze(place)
        return x

    named = letters[moving[0]]
    axis = result.index(lag) - len(order)
    value = mapped(value, lambda x: laid(x, named), lambda x: laid(x, named, 1), axis)
    for each, names in zip(known, letters, strict=True):
        if isinstance(each, Tensor):
            by = laid(each, names)
            if isinstance(value, LagSum):
                value = scaled(value, by)
            else:
                value = mapped(value, partial(torch.mul, by), torch.clone, axis)
    dims = list(range(len(result), len(order)))
    return _over(value, [sizes[letter] for letter in order], dims, keep=False)


def matrix_product(reader: Reading, node: Any) -> Read:
    """A matrix product of weights [.., M, K] and values at lags [.., K, L], or the other way."""
    left, right = (reader.given(each) for each in node.args[:2])
    shapes = [shape_of(each) for each in node.args[:2]]
    if min(map(len, shapes)) < 2 or isinstance(left, Tensor) == isinstance(right, Tensor):
        raise UnreadError
    rank = max(map(len, shapes)) + 1
    value, axis = (right, -1) if isinstance(left, Tensor) else (left, -2)
    if isinstance(value, Tensor) or value.axis != axis:
        raise UnreadError
    first = _spread(left, -1, rank)
    second = _spread(right, -3, rank)
    value, by = (second, first) if isinstance(first, Tensor) else (first, second)
    assert isinstance(by, Tensor)
    if isinstance(value, LagSum):
        value = scaled(value, by)
    else:
        value = mapped(value, partial(torch.mul, by), torch.clone, value.axis)
    batch = together(*(shape[:-2] for shape in shapes))
    full = [*batch, shapes[0][-2], shapes[0][-1], shapes[1][-1]]
    return _over(value, full, [rank - 2], keep=False)


def _spread(value: Tensor | Read, dim: int, rank: int) -> Any:
    """An operand [.., M, K] as [.., M, K, 1], or [.., K, N] as [.., 1, K, N]."""
    if isinstance(value, Tensor):
        return of_rank(value.unsqueeze(dim), rank)
    below = value.axis - 1 if dim == -1 else value.axis

    def plain(x: Tensor) -> Tensor:
        return x.unsqueeze(dim)

    def terms(x: Tensor) -> Tensor:
        return x.unsqueeze(dim - 1)

    return of_rank(mapped(value, plain, terms, below), rank)
