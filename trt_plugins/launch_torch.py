"""Launch a plugin's kernels on tensors of PyTorch: on a GPU, or in Triton's interpreter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intaglio.ops.op import Sample
from intaglio.runtime.launch import Buffer, Shape, Size, evaluate

from .plugin import Array, Input, Kernel, Kernels, Plugin, Request


def describe(x: Tensor) -> Input:
    """The tensor as part of a request, its last axis and every size known."""
    return Input(str(x.dtype).removeprefix("torch."), tuple(x.shape))


def request_of(plugin: Plugin, sample: Sample, sm: int) -> tuple[Request, list[Tensor | None]]:
    """The request that arguments of an operator stand for, and what its kernels read of them."""
    given = {name: x for name, x in sample.items() if isinstance(x, Tensor)}
    attributes = plugin.op.attributes(sample)
    inputs = prepared(plugin, given, attributes)
    described = {name: describe(x) for name, x in inputs.items()}
    request = Request(attributes=attributes, inputs=described, sm=sm)
    return request, [inputs.get(name) for name in plugin.inputs]


def prepared(
    plugin: Plugin, given: Mapping[str, Tensor], attributes: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The operator's arguments as the kernels read them."""
    if plugin.prepare is None:
        return dict(given)
    device = next(iter(given.values())).device
    arrays = plugin.prepare({name: _array(x) for name, x in given.items()}, attributes)
    return {name: _tensor(x).to(device) for name, x in arrays.items()}


def _array(x: Tensor) -> Array:
    """The tensor in numpy, which has bfloat16 from a package of its own."""
    if x.dtype is not torch.bfloat16:
        return x.cpu().numpy()
    import ml_dtypes

    return x.cpu().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def _tensor(x: Array) -> Tensor:
    x = np.ascontiguousarray(x)
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def errors(
    plugin: Plugin, sample: Sample, sm: int, ways: Sequence[int] | None = None
) -> list[list[float]]:
    """max|a-b| / max|b| of each output against the operator in float64, for each way to compute it.

    Every way is taken, or those of `ways`, whatever the shapes for which a plugin would take them.
    """
    exact = {
        name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in sample.items()
    }
    wanted = plugin.op.reference(**exact)
    request, inputs = request_of(plugin, sample, sm)
    kernels = plugin.kernels(request)
    found = []
    for way in kernels.ways if ways is None else [kernels.ways[index] for index in ways]:
        got = run(replace(kernels, ways=[replace(way, when=None)]), inputs)
        found.append([error_of(a, b) for a, b in zip(got, wanted, strict=True)])
    return found


def error_of(got: Tensor, wanted: Tensor) -> float:
    """max|got-wanted| / max|wanted|; infinite for another shape or what is not finite."""
    if got.shape != wanted.shape:
        return float("inf")
    if not got.numel():
        return 0.0
    error = (got.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)
    return float(error.nan_to_num(nan=torch.inf))


def run(kernels: Kernels, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Run the way that fits the shapes of the inputs; outputs and scratch start as NaN."""
    call, outputs = bind(kernels, inputs)
    call()
    return outputs


def bind(
    kernels: Kernels, inputs: Sequence[Tensor | None]
) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """What runs the way that fits the shapes of the inputs, and the outputs that it writes.

    Outputs and scratch start as NaN, so that what no kernel writes is seen.
    """
    shapes = [None if x is None else tuple(x.shape) for x in inputs]
    device = next(x.device for x in inputs if x is not None)

    def poisoned(dtype: str, shape: Sequence[Size]) -> Tensor:
        sizes = [evaluate(size, shapes) for size in shape]
        return torch.full(sizes, torch.nan, dtype=getattr(torch, dtype), device=device)

    way = next(way for way in kernels.ways if way.when is None or evaluate(way.when, shapes))
    outputs = tuple(poisoned(each.dtype, each.shape) for each in kernels.outputs)
    buffers: dict[str, Sequence[Tensor | None]] = {
        "input": inputs,
        "output": outputs,
        "scratch": [poisoned(each.dtype, each.shape) for each in way.scratch],
    }

    def call() -> None:
        for kernel in way.kernels:
            launch(kernel, shapes, buffers)

    return call, outputs


def launch(
    kernel: Kernel, shapes: Sequence[Shape | None], buffers: dict[str, Sequence[Tensor | None]]
) -> None:
    """Launch one kernel, unless its grid is empty."""
    grid = tuple(evaluate(size, shapes) for size in kernel.grid)
    if 0 in grid:
        return
    arguments = {
        name: buffers[given.kind][given.index]
        if isinstance(given, Buffer)
        else None
        if given is None
        else evaluate(given, shapes)
        for name, given in kernel.arguments.items()
    }
    kernel.function[grid](
        **arguments, **kernel.constants, num_warps=kernel.warps, num_stages=kernel.stages
    )
