"""Launch a plugin's kernels on tensors of PyTorch: on a GPU, or in Triton's interpreter."""

from collections.abc import Sequence

import torch
from torch import Tensor

from intaglio.runtime.launch import Buffer, Shape, Size, evaluate

from .plugin import Input, Kernel, Kernels


def describe(x: Tensor) -> Input:
    """The tensor as part of a request, its last axis and every size known."""
    return Input(str(x.dtype).removeprefix("torch."), tuple(x.shape))


def run(kernels: Kernels, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Run the way that fits the shapes of the inputs.

    Outputs and scratch start as NaN, so that what no kernel writes is seen.
    """
    shapes = [None if x is None else tuple(x.shape) for x in inputs]
    device = next(x.device for x in inputs if x is not None)

    def poisoned(dtype: str, shape: Sequence[Size]) -> Tensor:
        sizes = [evaluate(size, shapes) for size in shape]
        return torch.full(sizes, torch.nan, dtype=getattr(torch, dtype), device=device)

    way = next(way for way in kernels.ways if way.when is None or evaluate(way.when, shapes))
    buffers: dict[str, Sequence[Tensor | None]] = {
        "input": inputs,
        "output": [poisoned(each.dtype, each.shape) for each in kernels.outputs],
        "scratch": [poisoned(each.dtype, each.shape) for each in way.scratch],
    }
    for kernel in way.kernels:
        launch(kernel, shapes, buffers)
    return tuple(x for x in buffers["output"] if x is not None)


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
