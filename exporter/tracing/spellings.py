"""Functions that a tracer fixes or takes apart badly, in other words that mean the same.

While a module is captured, a call of one of `FUNCTIONS` runs as what stands beside it here:

* the largest of a window, in one dimension, as in two, where PyTorch's own looks at the length;
* windows by `unfold` as a convolution that picks each of their entries, which has a state;
* one entry that a list picks as a slice;
* variances over several axes by the sizes of these, which the converter multiplies as tensors, and
  those over an axis that is kept, which it reshapes to what nobody knows;
* inverses, solutions, factors and determinants of small matrices (`small_matrices`);
* order statistics and places among sorted values (`order_statistics`), scattered means and counts;
* what PyTorch gives numbers where sizes are free (`sized_calls`);
* joins under other names, and of what has no entries (`joined_calls`);
* distances of all pairs of points, where PyTorch looks at how many there are;
* numbers that count down by one as those that count up, turned round;
* Fourier transforms of frames, and of hops along time, and windows (`framed_transforms`);
* differences of a higher order, or with something put in front, one after the other.

Distributions do not check their arguments meanwhile, which they do by branching on values.  Each
holds for all values.  A call in a form that is not known here runs as it is.
"""

import math
from collections.abc import Callable, Mapping
from types import EllipsisType
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.distributions import Distribution
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from . import (
    framed_transforms,
    joined_calls,
    order_statistics,
    scattered_means,
    sized_calls,
    small_matrices,
)
from .small_matrices import AsItIsError

Spelled = Callable[..., Any]


def _max_pool1d(
    input: Tensor,  # noqa: A002  the names are PyTorch's
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    if return_indices:
        raise AsItIsError
    size, by = _one(kernel_size), _one(stride or kernel_size)
    pooled: Tensor = F.max_pool2d(
        input.unsqueeze(-2), (1, size), (1, by), (0, _one(padding)), (1, _one(dilation)), ceil_mode
    )
    return pooled.squeeze(-2)


def _one(number: Any) -> int:
    return int(number[0] if isinstance(number, tuple | list) else number)


def _unfold(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Windows of `size` along an axis of a free size, as entries at the end."""
    return _convolved(x, dimension, torch.eye(size, dtype=x.dtype), step)


def _convolved(x: Tensor, dim: int, taps: Tensor, stride: int) -> Tensor:
    """Each channel of `x` by each row of `taps`, over `dim`: one more axis at the end."""
    axis = dim % x.dim()
    if not x.is_floating_point() or axis == 0 or not isinstance(x.shape[axis], SymInt):
        raise AsItIsError
    along = x.movedim(axis, -1)
    beside = along.shape[1:-1]
    if any(isinstance(each, SymInt) for each in beside):
        raise AsItIsError
    channels, results = math.prod(beside), taps.shape[0]
    rows = along.reshape(along.shape[0], channels, along.shape[-1])
    weight = taps.repeat(channels, 1)[:, None]
    made = F.conv1d(rows, weight, stride=stride, groups=channels)  # [B, channels * results, T]
    return torch.unflatten(made, 1, (*beside, results)).movedim(-1, axis)


def _moments(x: Tensor, dim: Any, *, correction: float, keepdim: bool) -> tuple[Tensor, Tensor]:
    """Variance and mean over several axes of known sizes, or over one that is kept."""
    dim = (dim,) if isinstance(dim, int) and keepdim else dim
    several = isinstance(dim, tuple | list) and len(dim) > 1 - keepdim
    if not several or x.is_complex():
        raise AsItIsError
    sizes = [x.shape[axis] for axis in dim]
    if any(isinstance(size, SymInt) for size in sizes):
        raise AsItIsError
    mean = x.mean(dim, keepdim=True)
    count = math.prod(sizes) - correction
    if count <= 0:
        raise AsItIsError
    variance = (x - mean).square().sum(dim, keepdim=True) / count
    return (variance, mean) if keepdim else (_without(variance, dim), _without(mean, dim))


def _without(x: Tensor, dim: Any) -> Tensor:
    return x.squeeze(tuple(dim))


def _of_moments(give: Callable[[Tensor, Tensor], Any]) -> Spelled:
    def spelled(
        x: Tensor,
        dim: Any = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: float | None = None,
    ) -> Any:
        by = float(unbiased) if correction is None else correction
        return give(*_moments(x, dim, correction=by, keepdim=keepdim))

    return spelled


def _diff(
    x: Tensor,
    n: int = 1,
    dim: int = -1,
    prepend: Tensor | None = None,
    append: Tensor | None = None,
) -> Tensor:
    """Differences of a higher order of what something is put in front of, by their weights."""
    if n < 2 or append is not None or prepend is None:
        raise AsItIsError
    weights = [(-1.0) ** (n - k) * math.comb(n, k) for k in range(n + 1)]
    whole = torch.cat([prepend, x], dim)
    return _convolved(whole, dim, torch.tensor([weights], dtype=x.dtype), 1).squeeze(-1)


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    """[..., P, M] and [..., R, M] -> [..., P, R]."""
    del compute_mode  # by which of two ways it rounds
    if x1.is_complex() or p not in (1, 2):
        raise AsItIsError
    apart = x1[..., :, None, :] - x2[..., None, :, :]
    if p == 1:
        return apart.abs().sum(-1)
    square = apart.square().sum(-1)
    if not torch.is_grad_enabled():
        return square.sqrt()
    there = square > 0  # the distance of a point to itself has the derivative 0 in PyTorch
    return torch.where(there, torch.where(there, square, 1.0).sqrt(), 0.0)


def _arange(start: Any, end: Any = None, step: Any = 1, **others: Any) -> Tensor:
    """``arange(T - 1, -1, -1.0)``, whose length the converter tells as a quotient."""
    whole = all(isinstance(number, int | SymInt) for number in (start, end))
    if not whole or not isinstance(step, int | float) or step != -1:
        raise AsItIsError
    if isinstance(step, float):
        others = {"dtype": torch.get_default_dtype(), **others}
    return torch.arange(end + 1, start + 1, **others).flip(0)


def _picked(x: Tensor, index: Any) -> Tensor:
    """``x[:, [-1]]``, one entry by a list, as the slice that it is."""
    places = index if isinstance(index, tuple) else (index,)
    lists = [place for place in places if isinstance(place, list)]
    plain = all(each is None or isinstance(each, slice | list | EllipsisType) for each in places)
    if not plain or len(lists) != 1 or len(lists[0]) != 1 or type(lists[0][0]) is not int:
        raise AsItIsError
    (place,) = lists[0]
    taken = slice(place, place + 1 or None)
    return x[tuple(taken if isinstance(each, list) else each for each in places)]


_VARIANCE, _DEVIATION = _of_moments(lambda v, _: v), _of_moments(lambda v, _: v.sqrt())
_BOTH = _of_moments(lambda v, m: (v, m))
_DEVIATION_BOTH = _of_moments(lambda v, m: (v.sqrt(), m))

FUNCTIONS: Mapping[Any, Spelled] = {
    torch.max_pool1d: _max_pool1d,
    F.max_pool1d: _max_pool1d,
    Tensor.unfold: _unfold,
    Tensor.__getitem__: _picked,
    torch.arange: _arange,
    torch.cdist: _cdist,
    torch.linalg.solve_triangular: small_matrices.solve_triangular,
    torch.linalg.solve: small_matrices.solve,
    torch.linalg.inv: small_matrices.inverse,
    torch.inverse: small_matrices.inverse,
    Tensor.inverse: small_matrices.inverse,
    torch.linalg.cholesky: small_matrices.cholesky,
    torch.cholesky_solve: small_matrices.cholesky_solve,
    Tensor.cholesky_solve: small_matrices.cholesky_solve,
    torch.linalg.det: small_matrices.det,
    torch.det: small_matrices.det,
    Tensor.det: small_matrices.det,
    torch.linalg.slogdet: small_matrices.slogdet,
    torch.slogdet: small_matrices.slogdet,
    Tensor.slogdet: small_matrices.slogdet,
    torch.logdet: small_matrices.logdet,
    Tensor.logdet: small_matrices.logdet,
    torch.kthvalue: order_statistics.kthvalue,
    Tensor.kthvalue: order_statistics.kthvalue,
    torch.median: order_statistics.median,
    Tensor.median: order_statistics.median,
    torch.searchsorted: order_statistics.searchsorted,
    torch.bucketize: order_statistics.bucketize,
    torch.argsort: order_statistics.argsort,
    Tensor.argsort: order_statistics.argsort,
    torch.masked_select: order_statistics.masked_select,
    Tensor.masked_select: order_statistics.masked_select,
    torch.scatter_reduce: scattered_means.scatter_reduce,
    Tensor.scatter_reduce: scattered_means.scatter_reduce,
    torch.index_reduce: scattered_means.index_reduce,
    Tensor.scatter_reduce_: scattered_means.in_place(scattered_means.scatter_reduce),
    Tensor.index_reduce: scattered_means.index_reduce,
    Tensor.index_reduce_: scattered_means.in_place(scattered_means.index_reduce),
    torch.bincount: scattered_means.bincount,
    Tensor.bincount: scattered_means.bincount,
    **framed_transforms.SPELLED,
    **sized_calls.SPELLED,
    **joined_calls.SPELLED,
    torch.diff: _diff,
    Tensor.diff: _diff,
    torch.var: _VARIANCE,
    Tensor.var: _VARIANCE,
    torch.std: _DEVIATION,
    Tensor.std: _DEVIATION,
    torch.var_mean: _BOTH,
    torch.std_mean: _DEVIATION_BOTH,
}


class Spellings(TorchFunctionMode):
    """Runs calls of `FUNCTIONS` as what means the same."""

    def __enter__(self) -> Any:
        self._checks = Distribution._validate_args  # noqa: SLF001  it has a setter alone
        Distribution.set_default_validate_args(False)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> None:
        Distribution.set_default_validate_args(self._checks)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types  # part of the protocol
        given = dict(kwargs or {})
        if func in FUNCTIONS:
            try:
                return FUNCTIONS[func](*args, **given)
            except (AsItIsError, TypeError):  # another form of the call
                pass
        return func(*args, **given)
