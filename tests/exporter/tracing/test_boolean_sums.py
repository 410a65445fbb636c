"""A sum of booleans is true where either is, as PyTorch has it; sums with numbers are sums."""

import numpy as np
import torch
from torch import Tensor, nn

from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.trace import trace
from intaglio.passes.evaluate import run


class Sums(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        low, high = x < -0.5, x > 0.5
        return torch.where(low + high, x, 0.0) + (low + 1) + torch.add(low, high, alpha=3).float()


def test_sums_of_booleans_are_what_pytorch_computes() -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    source = load_source(Sums(), inputs={"x": x}, whole=True)
    found = run(trace(source).model, {"x": x}, optimize=True)
    np.testing.assert_allclose(found["output"], Sums()(torch.from_numpy(x)), rtol=1e-5)
