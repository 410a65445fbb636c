"""Order statistics and places among sorted values are PyTorch's, in each form of the call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intaglio
from intaglio.exporter.tracing.order_statistics import (
    argsort,
    kthvalue,
    masked_select,
    median,
    searchsorted,
)

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
Y = X.flatten()[:4].reshape(2, 2).contiguous()
CALLS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "kth": (kthvalue, torch.kthvalue, (X, 2), {}),
    "kth along": (kthvalue, torch.kthvalue, (X, 3, 1, True), {}),
    "median": (median, torch.median, (X,), {}),
    "median along": (median, torch.median, (X,), {"dim": 1}),
    "median kept": (median, torch.median, (X, -1, True), {}),
    "places": (searchsorted, torch.searchsorted, (X.sort().values, X), {}),
    "places in one row": (searchsorted, torch.searchsorted, (X[0, 0].sort().values, Y), {}),
    "places behind": (searchsorted, torch.searchsorted, (X.sort().values, X), {"right": True}),
    "places in 32 bits": (
        searchsorted, torch.searchsorted, (X.sort().values, X), {"side": "right", "out_int32": True}
    ),
    "order": (argsort, torch.argsort, (X, 1, True), {}),
    "order of equals": (argsort, torch.argsort, (X.round(),), {"dim": 0, "stable": True}),
    "selected": (masked_select, torch.masked_select, (X, X[:, :1] > 0), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_results_are_those_of_pytorch(case: str) -> None:
    ours, theirs, args, options = CALLS[case]
    found, wanted = ours(*args, **options), theirs(*args, **options)
    pairs = [(found, wanted)] if isinstance(wanted, Tensor) else zip(found, wanted, strict=True)
    for a, b in pairs:
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


class Ordered(nn.Module):
    """Each of them, over a set of any size."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        low, places = x.kthvalue(2, dim=1)
        middle = torch.median(x, 1).values
        rank = torch.searchsorted(x[..., 0].sort(1)[0], x[..., 1].contiguous())
        return low, places, middle, rank, (x * 4).long().argsort(dim=1, stable=True), x.median()


def test_they_are_exported(tmp_path: Path) -> None:
    given = {"x": torch.randn(2, 5, 3)}
    report = intaglio.export(
        Ordered(), tmp_path / "b", inputs=given, axes={"x": "batchxcount=2..64x3"}, whole=True
    )
    assert report.parity is not None
    assert report.parity.passed
