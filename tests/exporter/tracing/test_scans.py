"""PyTorch's `associative_scan` is traced in the order of time, and becomes what it computes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.scan import scan

from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.trace import trace
from intaglio.passes import pipeline, stepping
from intaglio.passes.base import Context


class Associated(nn.Module):
    """A gated recurrence by pairs, as S5 and minGRU have it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.write = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        def join(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return one[0] * two[0], two[0] * one[1] + two[1]

        gate = self.gate(x).sigmoid()
        pairs = (gate, (1 - gate) * self.write(x))
        return associative_scan(join, pairs, 1, combine_mode="generic")[1]


def test_an_associative_scan_is_a_recurrence() -> None:
    torch.manual_seed(0)
    source = load_source(Associated(), inputs={"x": np.zeros((2, 5, 4), np.float32)})
    model = trace(source).model
    context = Context()
    pipeline.run(model, pipeline.standard(), context)

    assert [(spec.op, spec.shape) for spec in context.states] == [("diagonal_ssm", ("batch", 4, 1))]
    inputs = source.random_inputs(3, 23, 1)
    wanted = source.module(**inputs).detach().numpy()
    for parts in ([23], [1] * 23, [2, 20, 1]):
        arrays = {name: value.numpy() for name, value in inputs.items()}
        found = stepping.roll(model, context.states, arrays, parts)
        np.testing.assert_allclose(found["output"], wanted, rtol=1e-5, atol=2e-6)


def test_a_scan_of_pytorch_is_exported(tmp_path: Path) -> None:
    """It is compiled at its first call, whoever watches that one."""

    class Scanned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            def step(h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
                h = 0.5 * h + torch.tanh(h) * u
                return h, h.clone()

            found: Tensor = scan(step, torch.zeros_like(x[:, 0]), x.movedim(1, 0))[1].movedim(0, 1)
            return found

    export(Scanned(), tmp_path / "bundle", inputs={"x": torch.randn(2, 6, 4)}, steps=8)
