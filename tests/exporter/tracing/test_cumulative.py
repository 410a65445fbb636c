"""What accumulates over tokens becomes scans; sums that overflow are carried in a stable form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import intaglio
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.cumulative import cummax, cummin, cumprod, logcumsumexp
from intaglio.exporter.tracing.trace import trace
from intaglio.passes import pipeline, stepping
from intaglio.passes.base import Context

SIZE = 4


class Accumulated(nn.Module):
    """Every accumulation, of values that differ."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(SIZE, 2 * SIZE)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b = self.w(x).chunk(2, -1)
        largest, whole = a.cummax(1), (8 * a).long()
        return {
            "log of sums": a.logcumsumexp(1),
            "largest": largest.values,
            "where": largest.indices.to(a.dtype),
            "smallest": torch.cummin(a.mT, dim=-1)[0].mT,
            "product": (1 + 0.1 * b.tanh()).cumprod(dim=1),
            "of whole numbers": whole.cummin(1)[0] - torch.cummax(whole, 1).values,
            "so far": (b > -1).cumprod(1),
        }


class Decayed(nn.Module):
    """Sums whose earlier terms decay, as their authors write them, and what only looks like one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(SIZE, 2 * SIZE)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b = self.w(x).chunk(2, -1)
        changed = (-0.1 * nn.functional.softplus(a)).cumsum(1)
        changed += 0.1 * b
        total = (-nn.functional.softplus(a)).cumsum(1)
        other = (-0.01 * nn.functional.softplus(b)).cumsum(1)
        return {
            "of what was changed": changed.exp() * (a * (-changed).exp()).cumsum(1),
            "of products": total.exp() * (a.sigmoid() * b.tanh() * (-total).exp()).cumsum(1),
            "of a quotient": a * (b / total.exp()).cumsum(dim=1) * torch.exp(total),
            "in logarithms": (total + (b - total).logcumsumexp(1)).exp(),
            "of another decay": total.exp() * (b * (-other).exp()).cumsum(1),
            "not of one": (total + (b - other).logcumsumexp(1)).exp(),
        }


class Led(nn.Module):
    """Decayed sums that start from a value of their own, which leads what they sum."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(SIZE, 2 * SIZE)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b = self.w(x).chunk(2, -1)
        decay, start = -nn.functional.softplus(a), torch.full_like(a[:, :1], -0.7)
        led, time = torch.cat([start, b], dim=1), x.shape[1]
        after = nn.functional.pad(decay.cumsum(1), (0, 0, 1, 0))
        before = nn.functional.pad(decay, (0, 0, 1, 0), value=0.0).cumsum(dim=1)
        return {
            "padded after": (after + (led - after).logcumsumexp(1)).exp()[:, 1:],
            "padded before": (before + (led - before).logcumsumexp(1)).exp()[:, -time:],
        }


def stepped(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], Context]:
    """What the module gives for 12 tokens, what a step graph gives in parts, and its states."""
    source = load_source(
        module, inputs={"x": np.random.default_rng(0).normal(size=(2, 5, SIZE)).astype("f")}
    )
    traced = trace(source)
    context = Context(max_context=traced.max_context)
    pipeline.run(traced.model, pipeline.standard(), context)
    inputs = source.random_inputs(3, 12, 1)
    with torch.no_grad():
        wanted = {name: value.numpy() for name, value in module(**inputs).items()}
    feeds = {name: value.numpy() for name, value in inputs.items()}
    got = stepping.roll(traced.model, context.states, feeds, [1, 5, 2, 4])
    return wanted, got, context


@pytest.mark.parametrize("make", [Accumulated, Decayed, Led])
def test_accumulations_over_tokens_are_carried(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    wanted, got, context = stepped(make())
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-5, err_msg=name)
    if make is Decayed:
        ops = [spec.op for spec in context.states]
        assert ops.count("diagonal_ssm") >= 3  # what does not match stays a sum, or a scan
        assert ops.count("cumulative_sum") == 5


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_along_an_axis_of_a_fixed_size_they_are_steps_of_all_entries(size: int) -> None:
    """Entries that are equal, far apart and infinite, along any axis."""
    x = torch.tensor([3.0, -1, 3, 500, -500, -torch.inf, 2, 500])[:size].repeat(2, 3, 1)
    x[1] = x[1].flip(-1)
    for dim, value in ((-1, x), (1, x.mT.contiguous())):
        torch.testing.assert_close(cumprod(value.long(), dim), value.long().cumprod(dim))
        torch.testing.assert_close(cumprod(value / 9, dim), (value / 9).cumprod(dim))
        torch.testing.assert_close(logcumsumexp(value, dim), value.logcumsumexp(dim))
        for own, theirs in ((cummax, torch.cummax), (cummin, torch.cummin)):
            for found, wanted in zip(own(value, dim), theirs(value, dim), strict=True):
                assert torch.equal(found, wanted)


def test_whole_models_accumulate_too(tmp_path: Path) -> None:
    """Transmittance along the samples of a ray, as radiance fields have it."""

    def forward(x: Tensor) -> Tensor:
        alpha = x.sigmoid()
        ones = torch.ones((x.shape[0], 1))
        left = torch.cumprod(torch.cat([ones, 1 - alpha + 1e-10], -1), -1)[:, :-1]
        return (alpha * left).sum(-1) + alpha.cummax(1).indices[:, -1]

    ray = intaglio.export(
        Called(forward), tmp_path / "b", inputs={"x": torch.randn(3, 6)}, axes={"x": "raysx6"}
    )
    assert ray.manifest.main.whole


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
