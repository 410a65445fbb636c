"""Causal convolutions over all of time, as they are written by Fourier transforms.

A product of transforms of length n is the convolution in a circle of n entries; where n >= 2 L - 1
nothing wraps around into the first L, which are then

    y_t = sum over s <= t of k_{t-s} u_s.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, fx

from .program_nodes import argument, length_of, shape_of, term

ATEN = torch.ops.aten
INVERSES = {
    ATEN.fft_irfft.default: ATEN.fft_rfft.default,
    ATEN.fft_ifft.default: ATEN.fft_fft.default,
}
FORWARD = frozenset(INVERSES.values())


def axis_of(node: Any) -> int:
    """The axis of a transform, counted from the end."""
    axis: int = argument(node, 2, "dim", -1)
    return axis if axis < 0 else axis - len(shape_of(node))


@dataclass(frozen=True)
class FourierConvolution:
    """``inverse(forward(a, n) * forward(b, n), n)`` along `axis`, its first `length` entries.

    `results` are the nodes that hold these entries, real ones.
    """

    factors: tuple[fx.Node, fx.Node]
    axis: int
    length: Any
    results: tuple[fx.Node, ...]

    @classmethod
    def of(cls, inverse: Any) -> "FourierConvolution | None":
        """What `inverse` ends, None for anything else."""
        count, axis = term(argument(inverse, 1, "n")), axis_of(inverse)
        product, roots = _undivided(inverse.args[0], count)
        if not isinstance(product, fx.Node) or product.target is not ATEN.mul.Tensor:
            return None
        parts = [_undivided(each, count) for each in product.args if isinstance(each, fx.Node)]
        transforms = [_with_row(each) for each, _ in parts]
        roots += sum(each for _, each in parts)
        if len(transforms) != 2 or count is None:
            return None
        if any(each.target is not INVERSES[inverse.target] for each in transforms):
            return None
        if any(term(argument(each, 1, "n")) != count for each in (inverse, *transforms)):
            return None
        if any(axis_of(each) != axis for each in transforms):
            return None
        roots += 2 - ROOTS[argument(inverse, 3, "norm")]
        roots += sum(ROOTS[argument(each, 3, "norm")] for each in transforms)
        if roots != 2:
            return None  # the convolution times a number of the length
        a, b = (each.args[0] for each in transforms)
        assert isinstance(a, fx.Node)
        assert isinstance(b, fx.Node)
        lengths = [length_of(each, axis) for each in (a, b)]
        length = term(lengths[0])
        if not isinstance(lengths[0], SymInt) or term(lengths[1]) != length:
            return None
        if any(each.meta["val"].is_complex() for each in (a, b)):
            return None
        if len(shape_of(product)) != max(len(shape_of(each)) for each in (a, b)):
            return None
        room = (count - 2 * length + 1).expand()
        if not (room.is_nonnegative or room == 0):
            return None  # the end of the convolution wraps around into its beginning
        results = tuple(_first_entries(inverse, axis, length))
        if not results or any(each.meta["val"].is_complex() for each in results):
            return None
        return cls((a, b), axis, lengths[0], results)


ROOTS = {None: 0, "backward": 0, "ortho": 1, "forward": 2}
"""By how many roots of its length a transform is divided; its inverse by those that are left."""


def _with_row(node: Any) -> Any:
    """What a row was taken out of, which a product with rows gives it again."""
    first = node.target is ATEN.squeeze.dim and node.args[1] == 0
    return node.args[0] if first and len(shape_of(node)) == 2 else node


def _undivided(node: Any, count: Any) -> tuple[Any, int]:
    """What `node` divides by `count`, and by how many roots of it: two or none."""
    divides = node.target is ATEN.div.Tensor and isinstance(node.args[1], int | fx.Node)
    return (node.args[0], 2) if divides and term(node.args[1]) == count else (node, 0)


def _first_entries(inverse: Any, axis: int, length: Any) -> Iterator[fx.Node]:
    """The nodes that cut the first `length` entries; none where any other is taken."""
    found: list[fx.Node] = []
    waiting: list[Any] = list(inverse.users)
    while waiting:
        node = waiting.pop()
        if node.target is ATEN.real.default and len(node.users):
            waiting.extend(node.users)
            continue
        if node.target is not ATEN.slice.Tensor:
            return
        dim = argument(node, 1, "dim", 0)
        dim = dim if dim < 0 else dim - len(shape_of(node))
        start, step = argument(node, 2, "start"), argument(node, 4, "step", 1)
        if start not in (None, 0) or step != 1 or dim != axis:
            return
        if term(length_of(node, axis)) != length:
            return
        if node.meta["val"].is_complex():
            if any(user.target is not ATEN.real.default for user in node.users):
                return
            found.extend(node.users)
        else:
            found.append(node)
    yield from found
