"""A model that fails on its own example inputs is told with the module that does."""

from pathlib import Path

import pytest
import torch
from torch import nn

from intaglio.errors import TraceError
from intaglio.exporter.export import export
from intaglio.exporter.tracing.at_fault import run_examples


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Identity(), nn.Embedding(4, 4)])

    def forward(self, ids: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            ids = part(ids)
        return ids + y


def test_the_innermost_module_is_named_and_no_hook_stays() -> None:
    model = Sum()
    good = {"ids": torch.ones(2, 3, dtype=torch.int64), "y": torch.zeros(2, 3, 4)}

    assert run_examples(model, good).shape == (2, 3, 4)
    with pytest.raises(TraceError, match=r"'parts.1' \(Embedding\) raises IndexError"):
        run_examples(model, {**good, "ids": torch.full((2, 3), 9)})
    with pytest.raises(TraceError, match="its own forward raises RuntimeError"):
        run_examples(model, {**good, "y": torch.zeros(5, 5)})
    assert not any(part._forward_hooks for part in model.parts)


def test_an_export_says_so(tmp_path: Path) -> None:
    inputs = {"ids": torch.full((2, 3), 9), "y": torch.zeros(2, 3, 4)}

    with pytest.raises(TraceError, match=r"'parts.1' \(Embedding\)"):
        export(Sum(), tmp_path / "bundle", inputs=inputs)


def test_what_fails_before_any_capture_is_the_models_own(tmp_path: Path) -> None:
    """With its error as it is without PyTorch's symbols, and the line."""

    class Uneven(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(*x.shape[:2], 3, -1).cumsum(1)

    with pytest.raises(TraceError, match=r"fails on its .*\[2, 3, 3, -1\].*test_at_fault.py:\d"):
        export(Uneven(), tmp_path / "bundle", inputs={"x": torch.zeros(2, 3, 4)})
