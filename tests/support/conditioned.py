"""Modules with conditions, taken as far as hoist: their step graph and what was split off."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import trace
from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.exact.hoist import Hoist

VOCABULARY = 13
SIZES = {"source": 11, "width": 5}  # of free axes beside batch and time

Shapes = Mapping[str, tuple[Any, ...]]


def hoisted(module: nn.Module, shapes: Shapes) -> tuple[ir.Model, Context]:
    """The step graph of `module`, whose inputs have `shapes`; hoist and what follows is checked."""

    def sample(given: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        sizes = {**SIZES, **given}
        drawn = {}
        for name, shape in shapes.items():
            size = [dim if isinstance(dim, int) else sizes[dim] for dim in shape]
            drawn[name] = torch.randn(size, generator=generator)
            if name in ("ids", "input_ids", "label"):
                drawn[name] = torch.randint(VOCABULARY, size, generator=generator)
            elif name == "mask":
                drawn[name] = torch.ones(size, dtype=torch.int64)
            elif name == "padded":
                drawn[name] = torch.zeros(size, dtype=torch.bool)
        return drawn

    torch.manual_seed(0)
    source = Source(
        path=Path("model.pt"),
        name="model",
        format="test",
        sha256="",
        body=module.eval().requires_grad_(requires_grad=False),
        dynamic={
            name: {axis: dim for axis, dim in enumerate(shape) if isinstance(dim, str)}
            for name, shape in shapes.items()
        },
        sample=sample,
    )
    model = trace(source).model
    context = Context(defaults={n: v for n, v in (("mask", 1), ("padded", 0)) if n in shapes})
    steps = pipeline.standard()
    at = [step.name for step in steps].index(Hoist.name)
    pipeline.run(model, steps[:at], context)
    pipeline.run(model, steps[at:], context, check=True)
    return model, context
