"""Means of what goes to the same entry, and reductions of whole slices, are PyTorch's."""

import pytest
import torch

from intaglio.exporter.tracing.scattered_means import index_reduce, scatter_reduce
from intaglio.exporter.tracing.small_matrices import AsItIsError


@pytest.mark.parametrize("include", [True, False])
def test_means_count_what_goes_to_an_entry(include: bool) -> None:
    """Entries that nothing goes to stay."""
    draw = torch.Generator().manual_seed(0)
    x, u = torch.randn(4, 5, generator=draw), torch.randn(4, 9, generator=draw)
    to = torch.randint(4, (4, 9), generator=draw)
    found = scatter_reduce(x, 1, to, u, "mean", include_self=include)
    torch.testing.assert_close(found, x.scatter_reduce(1, to, u, "mean", include_self=include))
    assert torch.equal(found[:, 4], x[:, 4])
    with pytest.raises(AsItIsError):
        scatter_reduce(x, 1, to, u, "amax")
    with pytest.raises(AsItIsError):
        scatter_reduce(x.long(), 1, to, u.long(), "mean")


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("reduce", ["prod", "mean", "amax", "amin"])
@pytest.mark.parametrize("dim", [0, -1])
def test_slices_are_reduced_as_wholes(reduce: str, dim: int) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, 3, generator=draw)
    u, to = torch.randn(3, 2, 3, generator=draw), torch.tensor([2, 0, 2])
    for include in (True, False):
        found = index_reduce(x, dim, to, u, reduce, include_self=include)
        wanted = torch.index_reduce(x, dim, to, u, reduce, include_self=include)
        torch.testing.assert_close(found, wanted)
