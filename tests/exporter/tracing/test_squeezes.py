"""Squeezes leave axes of more than one entry as they are, as PyTorch does, or are refused."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import TraceError
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import trace


class Squeezing(nn.Module):
    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def source_of(forward: Callable[[Tensor], Tensor], *, whole: bool) -> Source:
    inputs = {"x": np.ones((2, 5, 4), np.float32)}
    return load_source(Squeezing(forward), inputs=inputs, whole=whole)


def test_a_squeeze_of_more_than_one_entry_does_nothing() -> None:
    """PyTorch leaves such an axis, and ONNX's operator refuses it."""
    traced = trace(source_of(lambda x: x.squeeze(-1).unsqueeze(1).squeeze((1, -1)), whole=False))
    assert traced.model.graph.outputs[0].shape is not None


def test_a_squeeze_of_an_axis_as_long_as_the_data_say_is_refused() -> None:
    """With one entry it would go, with two it stays; an axis beside it may go."""
    with pytest.raises(TraceError, match="squeezes an axis that is as long as the data say"):
        trace(source_of(lambda x: torch.nonzero(x).squeeze(0), whole=True))

    beside = source_of(lambda x: torch.nonzero(x).unsqueeze(1).squeeze(1), whole=True)
    assert trace(beside).model.graph.outputs[0].shape is not None
