"""Functions that a tracer fixes run as what means the same, and are stepped."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal
from torch.nn import functional as F

from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.spellings import Spellings
from intaglio.exporter.tracing.trace import trace
from intaglio.passes import pipeline, stepping
from intaglio.passes.base import Context

SIZE = 4


class Spelled(nn.Module):
    """Windows, variances and differences as people write them."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        bands = torch.unflatten(x, 2, (2, 2))
        front = F.pad(x, (0, 0, 2, 0))
        both = torch.var_mean(bands, dim=(-1, -2), keepdim=True)
        return {
            "windows": front.unfold(1, 3, 1).flatten(2),
            "windows of bands": F.pad(bands, (0, 0, 0, 0, 2, 0)).unfold(1, 3, 1).flatten(2),
            "largest": F.max_pool1d(front.mT, 3, stride=1).mT,
            "largest of less than nothing": F.max_pool1d(
                F.pad(x.mT - 9, (2, 0), value=-torch.inf), 3, 1
            ).mT,
            "normal": ((bands - both[1]) * (both[0] + 1e-5).rsqrt()).flatten(2),
            "apart": bands.std((2, 3), unbiased=False, keepdim=True).flatten(2),
            "between points": torch.cdist(bands, 2 * bands[:, :, :1]).flatten(2),
            "on every axis": torch.cdist(bands, bands, p=1).flatten(2),
            "counted down": torch.arange(2, -2, -1.0) + x - torch.arange(1, -3, -1),
            "over one": (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1),
            "of all": bands.std([2, 3])[..., None],
            "of a policy": Normal(x, x.exp()).stddev,
            "second": torch.diff(x, n=2, dim=1, prepend=x.new_zeros(x.shape[0], 2, SIZE)),
        }


def test_what_is_spelled_otherwise_is_stepped() -> None:
    torch.manual_seed(0)
    source = load_source(Spelled(), inputs={"x": np.zeros((2, 5, SIZE), np.float32)})
    traced, context = trace(source), Context()
    pipeline.run(traced.model, pipeline.standard(), context)
    inputs = source.random_inputs(3, 12, 1)
    wanted = source.module(**inputs)
    feeds = {name: value.numpy() for name, value in inputs.items()}
    got = stepping.roll(traced.model, context.states, feeds, [1, 5, 2, 4])
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


class Warped(nn.Module):
    """Coordinates, as many as there are entries."""

    def forward(self, x: Tensor) -> Tensor:
        places = torch.linspace(-0.7, 1, x.shape[0])
        return x * places + torch.linspace(3, -2, steps=x.shape[0] + 1, dtype=torch.float64)[1:]


def test_numbers_between_two_are_as_many_as_an_axis_has() -> None:
    free = {"x": {0: torch.export.Dim("length", min=2)}}
    with Spellings():
        program = torch.export.export(Warped(), (torch.ones(8),), dynamic_shapes=free)
    for size in (2, 3, 6, 11):
        x = torch.arange(1.0, size + 1)
        torch.testing.assert_close(program.module()(x), Warped()(x))


def test_distributions_check_their_arguments_again_afterwards() -> None:
    before = Distribution._validate_args
    with Spellings():
        Normal(torch.tensor(torch.nan), torch.ones(()))
    assert Distribution._validate_args is before


def test_forms_that_are_not_known_run_as_they_are() -> None:
    x = torch.randn(2, 3, 8)
    calls: list[Any] = [
        lambda: F.max_pool1d(x, 2, return_indices=True)[1],
        lambda: x.var(1),
        x.std,
        lambda: x.unfold(2, 3, 2),
        lambda: (x[:, [-1]], x[[0]], x[..., [1], None], x[:, [0, 1]], x[:, [0], [1]], x[0, [1]]),
        lambda: x.diff(n=2),
        lambda: torch.diff(x),
        lambda: x.var((0, 1, 2), correction=0)[None],
    ]
    for call in calls:
        wanted = call()
        with Spellings():
            torch.testing.assert_close(call(), wanted)
