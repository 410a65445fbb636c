"""Joins under other names and of nothing mean what they mean."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from intaglio.exporter.tracing import joined_calls
from intaglio.exporter.tracing.small_matrices import AsItIsError


@pytest.mark.parametrize("function", [f for f in joined_calls.SPELLED if f is not torch.cat])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_each_join_is_that_of_its_name(function: Callable[..., Any], rank: int) -> None:
    given: list[Tensor] = [torch.randn([3, 3, 3][:rank]) for _ in range(2)]
    empty = torch.zeros([0, 3, 3][:rank])
    spelled = joined_calls.SPELLED[function]
    for tensors in (given, [empty, *given] if function in CONCATENATES else given):
        try:
            found = spelled(tensors)
        except AsItIsError:
            assert function in CONCATENATES
            continue
        torch.testing.assert_close(found, function(tensors))


CONCATENATES = (torch.concat, torch.concatenate)


def test_what_has_no_entries_may_still_tell_the_type() -> None:
    with pytest.raises(AsItIsError):
        joined_calls.cat([torch.zeros(2, 0), torch.ones(2, 3, dtype=torch.int64)], 1)


def test_nothing_of_one_axis_stands_beside_anything() -> None:
    x = torch.randn(2, 3)
    torch.testing.assert_close(joined_calls.cat([torch.tensor([]), x], 1), x)


def test_nothing_beside_one_tensor_is_a_tensor_of_its_own() -> None:
    x = torch.randn(2, 3)
    found = joined_calls.cat([torch.zeros(2, 0), x], 1)
    found += 1
    torch.testing.assert_close(found, x + 1)
