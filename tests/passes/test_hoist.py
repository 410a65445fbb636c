"""Hoist: what conditions alone decide is computed once, and exactly that."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import PassError
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import trace
from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.graph import dims
from intaglio.state import Layout

WIDTH, HEADS, VOCABULARY = 8, 2, 13
SIZES = {"source": 11, "height": 5, "width": 4}
Shapes = Mapping[str, tuple[Any, ...]]
IDS = {"ids": ("batch", "time")}


def hoisted(module: nn.Module, shapes: Shapes) -> tuple[ir.Model, Context]:
    """The step graph of `module`, whose inputs have `shapes`; every pass is checked."""

    def sample(batch: int, time: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        sizes = {**SIZES, "batch": batch, "time": time}
        drawn = {}
        for name, shape in shapes.items():
            size = [sizes.get(dim, dim) for dim in shape]
            drawn[name] = torch.randn(size, generator=generator)
            if name in ("ids", "label"):
                drawn[name] = torch.randint(VOCABULARY, size, generator=generator)
            elif name == "mask":
                drawn[name] = torch.ones(size, dtype=torch.int64)
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
    context = Context(defaults={"mask": 1} if "mask" in shapes else {})
    pipeline.run(model, pipeline.standard(), context, check=True)
    return model, context


class Decoder(nn.Module):
    """Causal attention, then attention to `memory`, [batch, source, width]; heads as views."""

    def __init__(self, kv_heads: int = HEADS) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.own = nn.Linear(WIDTH, 3 * WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, kv_heads * WIDTH // HEADS)
        self.value = nn.Linear(WIDTH, kv_heads * WIDTH // HEADS)
        self.kv_heads = kv_heads

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, WIDTH // HEADS)).transpose(1, 2)

    def decode(self, ids: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """What each token makes of those before it, and of `memory`."""
        x = self.embed(ids)
        q, k, v = (self._split(part, HEADS) for part in self.own(x).chunk(3, -1))
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        keys, values = (self._split(f(memory), self.kv_heads) for f in (self.key, self.value))
        keys, values = (
            part.repeat_interleave(HEADS // self.kv_heads, 1) if self.kv_heads < HEADS else part
            for part in (keys, values)
        )
        allowed = None if mask is None else mask[:, None, None].bool()
        found = F.scaled_dot_product_attention(self._split(self.query(x), HEADS), keys, values, allowed)
        return x + found.transpose(1, 2).flatten(2)


class Plain(Decoder):
    """Memory and mask are given."""

    def forward(self, ids: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        return self.decode(ids, memory, mask)


MEMORY = {"memory": ("batch", "source", WIDTH)}
PLAIN = {**IDS, **MEMORY, "mask": ("batch", "source")}


def kinds(model: ir.Model | None) -> list[str]:
    """The operators of a graph."""
    assert model is not None
    return [node.op_type for node in model.graph]


def prepared(context: Context) -> dict[str, tuple[int | str, ...]]:
    """Shapes of the states that no step changes, by name."""
    return {spec.input: spec.shape for spec in context.states if spec.layout is Layout.PREPARED}


@pytest.mark.parametrize("first", [False, True], ids=["ids first", "conditions first"])
def test_keys_and_values_of_cross_attention_are_computed_once(first: bool) -> None:
    """Their products leave the step, wherever the number of rows is read from."""
    shapes = dict(reversed(PLAIN.items())) if first else PLAIN
    step, context = hoisted(Plain(), shapes)
    heads = ("batch", HEADS, "source", WIDTH // HEADS)
    assert prepared(context) == {
        "prepared.key": heads,
        "prepared.value": heads,
        "prepared.mask": ("batch", 1, 1, "source"),
    }
    assert kinds(context.prepare).count("MatMul") == 2
    assert kinds(step).count("MatMul") == 2
    assert {"memory", "mask"}.isdisjoint(value.name for value in step.graph.inputs)


def test_repeated_heads_are_carried_once() -> None:
    """What an Expand makes large is expanded in the step."""
    _, context = hoisted(Decoder1(), {**IDS, **MEMORY})
    assert set(prepared(context).values()) == {("batch", 1, "source", WIDTH // HEADS)}


class Decoder1(Decoder):
    """One head of keys and values for all queries."""

    def __init__(self) -> None:
        super().__init__(kv_heads=1)

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        return self.decode(ids, memory)
