"""What the tests of passes share: tracing small modules, and graphs written as ONNX text."""

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from traced import VOCABULARY, Traced

from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import trace
from intaglio.passes import pipeline
from intaglio.passes.base import Context, Pass
from intaglio.state import BATCH, TIME


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def traced() -> Traced:
    """The training-form graph of a module that maps input_ids [batch, time] to outputs."""

    def sample(sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        batch, time = sizes[BATCH], sizes[TIME]
        generator = torch.Generator().manual_seed(seed)
        return {"input_ids": torch.randint(VOCABULARY, (batch, time), generator=generator)}

    def graph_of(module: nn.Module) -> tuple[ir.Model, Context]:
        source = Source(
            path=Path("model.pt"),
            name="model",
            format="test",
            sha256="",
            model="test",
            config={},
            body=module.eval(),
            dynamic={"input_ids": {0: "batch", 1: "time"}},
            aliases={},
            sample=sample,
        )
        found = trace(source)
        return found.model, Context(max_context=found.max_context)

    return graph_of


@pytest.fixture(scope="session")
def apply() -> Callable[..., ir.Model]:
    """Run one pass over a graph written as text, checked; a second run must do nothing."""

    def run(text: str, step: Pass, context: Context | None = None) -> ir.Model:
        model = ir.from_onnx_text(text)
        context = context or Context()
        pipeline.run(model, [step], context, check=True)
        assert not step.run(model, context).changed
        return model

    return run
