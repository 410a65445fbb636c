"""Order statistics by sorting, and places among sorted values by counting.

ONNX sorts (TopK) and compares, and has none of what PyTorch makes of the order.  Entries are taken
to be numbers: nan has no place in an order.
"""

from typing import Any

import torch
from torch import Tensor

from .small_matrices import AsItIsError


def kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """The k-th smallest entry along `dim`, and where it is."""
    found = torch.topk(x, k, dim=dim, largest=False)
    return torch.return_types.kthvalue(_entry(found, k - 1, dim, keepdim=keepdim))


def median(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower of the middle entries, of all or along `dim`, and there where it is."""
    if dim is None:
        flat = x.reshape(-1)
        return flat.sort().values.narrow(0, (flat.shape[0] - 1) // 2, 1).squeeze(0)
    found, middle = torch.sort(x, dim=dim), (x.shape[dim] - 1) // 2
    return torch.return_types.median(_entry(found, middle, dim, keepdim=keepdim))


def _entry(found: Any, place: int, dim: int, *, keepdim: bool) -> tuple[Tensor, Tensor]:
    values, indices = (each.narrow(dim, place, 1) for each in (found.values, found.indices))
    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))


def searchsorted(
    sorted_sequence: Tensor,
    input: Any,  # noqa: A002  the names are PyTorch's
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """How many entries of a sorted row are less than each value, or not greater."""
    if not isinstance(input, Tensor) or sorter is not None:
        raise AsItIsError
    row, value = sorted_sequence, input.unsqueeze(-1)
    row = row if row.dim() == 1 else row.unsqueeze(-2)
    before = row <= value if right or side == "right" else row < value
    return before.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def bucketize(
    input: Any,  # noqa: A002
    boundaries: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
) -> Tensor:
    """Between which boundaries each value is."""
    return searchsorted(boundaries, input, out_int32=out_int32, right=right)


def argsort(x: Tensor, *given: Any, **options: Any) -> Tensor:
    """Where the entries in their order are."""
    if (given and isinstance(given[0], bool)) or len(given) > 2:
        raise AsItIsError
    named = dict(zip(("dim", "descending"), given, strict=False)) | options
    if named.pop("stable", False):
        return torch.sort(x, stable=True, **named).indices
    return torch.sort(x, **named).indices


def masked_select(x: Tensor, mask: Tensor) -> Tensor:
    """The entries where a mask holds, in a row."""
    shape = torch.broadcast_shapes(x.shape, mask.shape)  # type: ignore[no-untyped-call]
    return x.expand(shape)[mask.expand(shape)]
