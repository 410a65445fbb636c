"""What reduces a scalar along axis 0 or -1, as PyTorch allows, becomes a graph that opens."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.trace import trace
from intaglio.passes.evaluate import run


class Reduced(nn.Module):
    """The mean of everything, reduced again along the axis that it does not have."""

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean()
        found = [
            s.amax(0),
            s.amin(-1),
            s.prod(0),
            s.std(0, correction=0) + s.var(-1, correction=0),
            torch.linalg.vector_norm(s, dim=0, keepdim=True),
            s.norm(1, 0),
            *s.topk(1, 0),
            *torch.var_mean(s, 0, correction=0),
            ((s > 0).all(0) | (s > 0).any(-1)) + s,
            F.normalize(s, dim=0),
        ]
        return torch.stack([each.to(x.dtype) for each in found]) + x.sum()


def test_scalars_are_reduced_as_pytorch_does() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    source = load_source(Reduced(), inputs={"x": x}, whole=True)
    found = run(trace(source).model, {"x": x}, optimize=True)
    np.testing.assert_allclose(found["output"], Reduced()(torch.from_numpy(x)), rtol=1e-5)
