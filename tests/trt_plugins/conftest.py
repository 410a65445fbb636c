"""Kernels on a GPU where there is one, else in Triton's interpreter (see tests/conftest.py)."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from intaglio.ops.op import Sample
from intaglio.trt_plugins.launch_torch import errors
from intaglio.trt_plugins.plugin import Plugin

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Check = Callable[..., None]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def check() -> Check:
    """Every way of a plugin's kernels equals the operator in float64, to its tolerance."""

    def check(
        plugin: Plugin, sample: Sample, *, sm: int = 90, ways: Sequence[int] | None = None
    ) -> None:
        there = {n: x.to(DEVICE) if isinstance(x, Tensor) else x for n, x in sample.items()}
        dtype = next(x.dtype for x in sample.values() if isinstance(x, Tensor))
        limit = plugin.tolerance[str(dtype).removeprefix("torch.")]
        found = errors(plugin, there, sm, ways)
        assert all(error <= limit for way in found for error in way), found

    return check
