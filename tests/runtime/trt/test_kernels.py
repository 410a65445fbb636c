"""Kernels as data: in the fields of an engine, and for the GPU that is there."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from intaglio.errors import BundleError
from intaglio.runtime.trt.kernels import Kernels


def test_fields_hold_the_kernels_in_less(make_kernels: Callable[..., Kernels]) -> None:
    """Machine code is repetitive, and every node of an engine carries its own."""
    made = make_kernels()
    long = replace(made, code=dict.fromkeys(made.code, bytes(10_000)))
    fields = long.to_fields()

    assert Kernels.from_fields(fields) == long
    assert sum(map(len, fields.values())) < 10_000


def test_the_plan_is_that_of_the_gpu(make_kernels: Callable[..., Kernels]) -> None:
    """One for each compute capability; another is told what there is."""
    made = make_kernels()

    assert made.for_device(90) is made.plans[90]
    with pytest.raises(BundleError, match="for compute capability 80, 90; this GPU has 75"):
        made.for_device(75)
