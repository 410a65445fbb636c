"""Kernels in Triton's interpreter, which is chosen when they are first imported."""

import os

os.environ["TRITON_INTERPRET"] = "1"

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from intaglio.ops.op import Sample
from intaglio.trt_plugins.plugin import Array, Plugin, Request
from intaglio.trt_plugins.run import describe, run

Check = Callable[..., None]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def check() -> Check:
    """What a plugin's kernels make of a sample equals the operator in float64, every way of them.

    `sizes` unknown when kernels are compiled are axes of inputs by name; `ways` chooses among the
    ways that the plugin has, whatever the shapes for which it would take each.
    """

    def check(
        plugin: Plugin, sample: Sample, *, ways: list[int] | None = None, sm: int = 90
    ) -> None:
        given = {name: x for name, x in sample.items() if isinstance(x, Tensor)}
        attributes = {name: x for name, x in sample.items() if name not in given}
        exact = {n: x.double() if x.is_floating_point() else x for n, x in given.items()}
        wanted = plugin.op.reference(**exact, **attributes)
        inputs = _prepared(plugin, given, plugin.op.attributes(sample))
        request = Request(
            attributes=plugin.op.attributes(sample),
            inputs={name: describe(x) for name, x in inputs.items()},
            sm=sm,
        )
        kernels = plugin.kernels(request)
        dtype = str(next(iter(given.values())).dtype).removeprefix("torch.")
        for index in ways if ways is not None else range(len(kernels.ways)):
            way = replace(kernels.ways[index], when=None)
            found = run(replace(kernels, ways=[way]), [inputs.get(n) for n in plugin.inputs])
            assert len(found) == len(wanted)
            for got, want in zip(found, wanted, strict=True):
                assert got.shape == want.shape
                error = (got.double() - want).abs().amax() / want.abs().amax() if got.numel() else 0
                assert error <= plugin.tolerance[dtype], f"way {index}: {error}"

    return check


def _prepared(
    plugin: Plugin, given: Mapping[str, Tensor], attributes: Mapping[str, Any]
) -> dict[str, Tensor]:
    if plugin.prepare is None:
        return dict(given)
    arrays = plugin.prepare({name: _array(x) for name, x in given.items()}, attributes)
    return {name: _tensor(np.ascontiguousarray(x)) for name, x in arrays.items()}


def _array(x: Tensor) -> Array:
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: Array = x.numpy()
    return array


def _tensor(x: Array) -> Tensor:
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)
