"""Kernels as data: in the fields of an engine, and for the GPU that is there."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from intaglio.errors import BundleError
from intaglio.runtime.trt.kernels import NodeKernels


def test_fields_hold_the_kernels_in_less(make_kernels: Callable[..., NodeKernels]) -> None:
    """Machine code is repetitive."""
    made = make_kernels()
    long = replace(made, code=dict.fromkeys(made.code, bytes(10_000)))
    fields = long.to_fields("node", {})

    assert NodeKernels.from_fields(fields, {}) == long
    assert sum(map(len, fields.values())) < 10_000


def test_nodes_of_an_engine_carry_code_for_each_other(
    make_kernels: Callable[..., NodeKernels],
) -> None:
    """Each piece once, in the first node that is asked, however often; whichever is read first."""
    made = make_kernels()
    carriers: dict[str, str] = {}
    first, second, again = (made.to_fields(node, carriers) for node in ("a", "b", "a"))
    pieces: dict[str, bytes] = {}
    read = [NodeKernels.from_fields(fields, pieces) for fields in (second, first)]

    assert first == again
    assert len(first) == 1 + len(made.code)
    assert len(second) == 1
    assert read == [made, made]
    assert made.lie_in(b"".join(first.values()))
    assert not made.lie_in(b"".join(second.values()))


def test_the_plan_is_that_of_the_gpu(make_kernels: Callable[..., NodeKernels]) -> None:
    """One for each compute capability; another is told what there is."""
    made = make_kernels()

    assert made.for_device(90) is made.plans[90]
    with pytest.raises(BundleError, match="for compute capability 80, 90; this GPU has 75"):
        made.for_device(75)
