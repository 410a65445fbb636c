"""What accumulates along an axis by another rule than a sum: products, extremes, log-sum-exp.

PyTorch has one function for each, and ONNX no operator.  While a module is captured they are calls
of `scan`, whose carried values become states.  The logarithm of a sum of exponentials carries the
largest term m and the sum s of what the others are beside it,

    m <- max(m, x),  s <- s e^{m_before - m} + e^{x - m},  log sum = m + log s,

which no number of tokens lets overflow (Blelloch 1990, section 1.4, for scans of any such rule).
Along an axis of a fixed size n they are log2(n) steps over all entries at once: after step k an
entry stands for the 2^k that end in it (Hillis and Steele 1986, section "sum of an array").
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import SymInt, Tensor
from torch._higher_order_ops.scan import scan
from torch.overrides import TorchFunctionMode

from .decayed_sums import TensorOrigins

Pair = tuple[Tensor, Tensor]
Values = tuple[Tensor, ...]


def logcumsumexp(x: Tensor, dim: int) -> Tensor:
    """``log(cumsum(exp(x)))`` along `dim`."""

    def step(carried: Pair, entry: Tensor) -> tuple[Pair, Tensor]:
        largest, total = carried
        now = torch.maximum(largest, entry)
        total = total * torch.exp(largest - now) + torch.exp(entry - now)
        return (now, total), now + torch.log(total)

    if not isinstance(x.shape[dim], SymInt):

        def join(earlier: Values, later: Values) -> Values:
            largest = torch.maximum(earlier[0], later[0])
            parts = (part[1] * torch.exp(part[0] - largest) for part in (earlier, later))
            return largest, sum(parts, torch.zeros_like(largest))

        finite = x.clamp_min(torch.finfo(x.dtype).min)
        largest, total = _doubled((finite, torch.exp(x - finite)), dim, join)
        return largest + torch.log(total)
    along = x.movedim(dim, 0)
    start = torch.full_like(along[0], torch.finfo(x.dtype).min)
    result: Tensor = scan(step, (start, torch.zeros_like(along[0])), along, dim=0)[1]
    return result.movedim(0, dim)


def cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """The product of all entries along `dim` up to each."""
    if dtype is None and not x.dtype.is_floating_point:
        dtype = torch.int64  # as PyTorch multiplies whole numbers, and what is true
    return _accumulated(x if dtype is None else x.to(dtype), dim, 1, torch.mul)


def cummax(x: Tensor, dim: int) -> Any:
    """The largest entry along `dim` up to each, and where it is."""
    return _extreme(x, dim, torch.maximum, torch.ge, -1, torch.return_types.cummax)


def cummin(x: Tensor, dim: int) -> Any:
    """The smallest entry along `dim` up to each, and where it is."""
    return _extreme(x, dim, torch.minimum, torch.le, 1, torch.return_types.cummin)


def _doubled(
    values: Values, dim: int, join: Callable[[Values, Values], Values], reach: int = 1
) -> Values:
    """Accumulate along an axis of a fixed size; `join` is of what ends earlier and later."""
    size = int(values[0].shape[dim])
    while reach < size:
        parts = ((0, size - reach), (reach, size - reach))
        earlier, later = (tuple(v.narrow(dim, *part) for v in values) for part in parts)
        joined = zip(values, join(earlier, later), strict=True)
        values = tuple(torch.cat((v.narrow(dim, 0, reach), j), dim) for v, j in joined)
        reach *= 2
    return values


def _accumulated(x: Tensor, dim: int, start: Any, join: Callable[..., Tensor]) -> Tensor:
    if not isinstance(x.shape[dim], SymInt):
        return _doubled((x,), dim, lambda a, b: (join(a[0], b[0]),))[0]

    def step(carried: Tensor, entry: Tensor) -> Pair:
        now = join(carried, entry)
        return now, now.clone()

    along = x.movedim(dim, 0)
    result: Tensor = scan(step, torch.full_like(along[0], start), along, dim=0)[1]
    return result.movedim(0, dim)


def _extreme(
    x: Tensor,
    dim: int,
    join: Callable[..., Tensor],
    beats: Callable[..., Tensor],
    sign: int,
    result: Callable[[Pair], Any],
) -> Any:
    """Values, and places: these are a scan of their own, dropped where nobody takes them."""
    ends = torch.finfo(x.dtype) if x.dtype.is_floating_point else torch.iinfo(x.dtype)
    start = sign * ends.max
    values = _accumulated(x, dim, start, join)
    along = x.movedim(dim, 0)
    count = torch.arange(along.shape[0], device=x.device)
    at = count.reshape(-1, *[1] * (along.dim() - 1)).expand_as(along)
    if not isinstance(x.shape[dim], SymInt):

        def chosen(earlier: Values, later: Values) -> Values:
            better = beats(later[0], earlier[0])
            return tuple(torch.where(better, b, a) for a, b in zip(earlier, later, strict=True))

        return result((values, _doubled((x, at.movedim(0, dim)), dim, chosen)[1]))

    def step(carried: Pair, entry: Pair) -> tuple[Pair, Tensor]:
        better = beats(entry[0], carried[0])
        value = torch.where(better, entry[0], carried[0])
        place = torch.where(better, entry[1], carried[1])
        return (value, place), place.clone()

    first = (torch.full_like(along[0], start), torch.zeros_like(along[0], dtype=torch.int64))
    places: Tensor = scan(step, first, (along, at.contiguous()), dim=0)[1]
    return result((values, places.movedim(0, dim)))


FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    torch.logcumsumexp: logcumsumexp,
    Tensor.logcumsumexp: logcumsumexp,
    torch.cumprod: cumprod,
    Tensor.cumprod: cumprod,
    torch.cummax: cummax,
    Tensor.cummax: cummax,
    torch.cummin: cummin,
    Tensor.cummin: cummin,
}


class Scans(TorchFunctionMode):
    """Takes the functions of `FUNCTIONS` for scans, or for steps along an axis of a fixed size.

    Where a source is stepped, sums whose earlier terms decay are scans as well (`decayed_sums`).
    """

    def __init__(self, *, stepped: bool) -> None:
        super().__init__()
        self._stepped, self._origins = stepped, TensorOrigins()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types  # part of the protocol
        given = dict(kwargs or {})
        if func in FUNCTIONS and isinstance(args[0], Tensor):
            dim = args[1] if len(args) > 1 else given.get("dim")
            taken = not args[0].dtype.is_complex and args[0].dim() > 0
            if isinstance(dim, int) and taken:
                return self._noted(func, args, given, FUNCTIONS[func](*args, **given))
        return self._noted(func, args, given, func(*args, **given))

    def _noted(self, func: Any, args: tuple[Any, ...], given: dict[str, Any], result: Any) -> Any:
        return self._origins.note(func, args, given, result) if self._stepped else result
