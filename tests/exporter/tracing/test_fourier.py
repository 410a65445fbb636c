"""Causal convolutions by Fourier transforms are stepped; circular ones are refused by name."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fft, nn

from intaglio.errors import TraceError
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.trace import trace
from intaglio.passes import pipeline, stepping
from intaglio.passes.base import Context

SIZE, MOST = 4, 32


class Convolutions(nn.Module):
    """Kernels of the lag and of a parameter that have no state, real and complex transforms."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.weight = (nn.Parameter(torch.rand(SIZE, 3)) for _ in range(2))
        self.kernel, self.skip = (
            nn.Parameter(torch.randn(MOST, SIZE)),
            nn.Parameter(torch.ones(SIZE)),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        u, time = x.mT, x.shape[1]
        lags = torch.arange(time, dtype=torch.float32)
        sums = (self.weight[..., None] * torch.exp(-self.rate[..., None] * lags.square())).sum(1)
        waves = torch.cos(self.rate[:, :1] * lags)
        waves = waves * torch.exp(-lags.sqrt() * self.weight[:, 1, None])
        poles = torch.exp(torch.complex(-self.rate, self.weight)[..., None] * lags)
        waves = waves + torch.einsum("hn,hnl->hl", self.weight, poles.real) + poles.sum(1).real
        n, odd = 2 * time, 2 * time - 1
        real = fft.irfft(fft.rfft(u, n=n) * fft.rfft(sums, n=n), n=n)[..., :time]
        product = fft.fft(waves, n=odd) * fft.fft(u, n=odd)
        table = self.kernel[:time].mT
        looked_up = fft.irfft(fft.rfft(u, n=n) * fft.rfft(table, n=n), n=n)[..., :time]
        return {
            "bells": (real + self.skip[:, None] * u).mT,
            "waves": fft.ifft(product, n=odd).real[..., :time].mT,
            "parameter": looked_up.mT,
        }


class Convolved(nn.Module):
    """Transforms of `count(L)` entries with a kernel made by `kernel(L, x)`."""

    def __init__(
        self, count: Callable[[int], int], kernel: Callable[[int, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.count, self.kernel = count, kernel

    def forward(self, x: Tensor) -> Tensor:
        time = x.shape[1]
        n = self.count(time)
        product = fft.rfft(x.mT, n=n) * fft.rfft(self.kernel(time, x), n=n)
        result: Tensor = fft.irfft(product, n=n)[..., :time].mT
        return result


def decayed(time: int, _: Tensor) -> Tensor:
    return torch.exp(-0.5 * torch.arange(time))


def example() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=(2, 5, SIZE)).astype(np.float32)


def test_causal_convolutions_are_stepped() -> None:
    torch.manual_seed(0)
    module = Convolutions()
    source = load_source(module, inputs={"x": example()}, axes=f"x:batchxtime=..{MOST}x{SIZE}")
    traced = trace(source)
    assert traced.max_context == MOST
    context = Context(max_context=traced.max_context)
    pipeline.run(traced.model, pipeline.standard(), context)
    inputs = source.random_inputs(3, 12, 1)
    got = stepping.roll(traced.model, context.states, {"x": inputs["x"].numpy()}, [1, 5, 2, 4])
    with torch.no_grad():
        wanted = module(**inputs)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value.numpy(), rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("count", "kernel"),
    [
        (lambda time: time + 3, decayed),
        (lambda time: 2 * time - 2, decayed),
        (lambda time: 2 * time, lambda time, _: torch.arange(time) / time),
        (lambda time: 2 * time, lambda _, x: x.abs().mT),
        (lambda time: 2 * time, lambda time, _: decayed(time, _).cumsum(0)),
    ],
    ids=["circular", "one too few", "of the length", "data", "sums over lags"],
)
def test_what_is_no_causal_convolution_is_refused_by_name(
    count: Callable[[int], int], kernel: Callable[[int, Tensor], Tensor]
) -> None:
    source = load_source(Convolved(count, kernel), inputs={"x": example()}, whole=False)
    with pytest.raises(TraceError, match=r"torch\.fft\.rfft transforms along time.*2 L - 1"):
        trace(source)
