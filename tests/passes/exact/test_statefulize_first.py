"""Statefulize keeps what a model takes of the first token, for all tokens after it."""

import numpy as np
import torch
from torch import Tensor, nn

from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.trace import trace
from intaglio.passes import pipeline, stepping
from intaglio.passes.base import Context

SIZE = 4


class Started(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.gate = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        self.gru = nn.GRU(SIZE, SIZE, batch_first=True)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        begin = self.start(x[:, 0]).tanh()
        return {
            "started": self.gru(x, begin[None])[0],
            "gated": x * self.gate(x[:, :1]).sigmoid(),
        }


def test_the_first_token_is_kept() -> None:
    torch.manual_seed(0)
    source = load_source(Started(), inputs={"x": np.zeros((2, 5, SIZE), np.float32)})
    model, context = trace(source).model, Context()
    pipeline.run(model, pipeline.standard(), context)
    assert [spec.op for spec in context.states].count("first_token") == 2
    inputs = source.random_inputs(3, 9, 1)
    feeds = {name: value.numpy() for name, value in inputs.items()}
    got = stepping.roll(model, context.states, feeds, [1, 2, 6])
    with torch.no_grad():
        wanted = source.module(**inputs)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
