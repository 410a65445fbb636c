"""S4D: a state-space model for each channel whose states do not mix, trained as a convolution.

x_t = e^{dt A} x_{t-1} + B u_t,  y_t = 2 Re(C x_t) + D u_t,  B = (e^{dt A} - 1) / A,  N/2 complex
states a channel; over a whole sequence y is u convolved with k_l = 2 Re(C B e^{dt A l}).  A layer
is GELU(y), mixed across channels by a gated linear unit.

Source: Gu et al. 2022, arXiv:2206.11893; parameters as in state-spaces/s4, `models/s4/s4d.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layout import CheckpointLayout, Shapes, Values
from .model import Model
from .parts.hippo import diagonal_poles, timescales
from .parts.s4_layers import (
    DELAYS,
    IMMATERIAL,
    Delays,
    Stack,
    convolve,
    parameter,
    signals,
    stack_values,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """`state_size` N counts real numbers a channel; `poles` is lin, inv, legs or real.

    Steps are drawn between `dt_min` and `dt_max`: a channel remembers about 1 / dt tokens.
    `pooled` decodes the mean of all tokens so far.
    """

    input_size: int = 1
    output_size: int = 10
    hidden_size: int = 256
    num_layers: int = 4
    state_size: int = 64
    poles: str = "lin"
    dt_min: float = 0.001
    dt_max: float = 0.1
    prenorm: bool = False
    pooled: bool = True


TINY = Config(
    output_size=len(DELAYS), hidden_size=32, num_layers=2, state_size=32, dt_min=0.005, pooled=False
)


class Kernel(nn.Module):
    """Poles, step sizes and weights; gives 2 Re(C B e^{dt A l}) for lags l."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = config.hidden_size
        poles = diagonal_poles(config.poles, config.state_size)
        generator = torch.Generator(device="cpu").manual_seed(torch.initial_seed() % 2**63)
        dt = timescales(channels, config.dt_min, config.dt_max, generator)
        weight = torch.randn(channels, len(poles), dtype=torch.complex64)
        self.C = nn.Parameter(torch.view_as_real(weight))
        self.log_dt = parameter(dt.log())
        self.log_A_real = parameter((-poles.real).log().expand(channels, -1))
        self.A_imag = parameter(poles.imag.expand(channels, -1))

    def forward(self, time: int) -> Tensor:
        """The kernel [channels, T]."""
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)
        step = A * self.log_dt.exp()[:, None]
        weight = torch.view_as_complex(self.C) * torch.expm1(step) / A
        lag = torch.arange(time, device=step.device)
        powers = torch.exp(step[..., None] * lag)
        kernel: Tensor = 2 * torch.einsum("hn,hnl->hl", weight, powers).real
        return kernel


class Layer(nn.Module):
    """The convolution, a direct path, and a gated linear unit across channels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.D = nn.Parameter(torch.randn(size))
        self.kernel = Kernel(config)
        self.output_linear = nn.Sequential(nn.Conv1d(size, 2 * size, kernel_size=1), nn.GLU(dim=-2))

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T, then across channels."""
        u = x.mT
        y = convolve(u, self.kernel(u.shape[-1])) + u * self.D[:, None]
        mixed: Tensor = self.output_linear(F.gelu(y))
        return mixed.mT


def build(config: Config) -> Stack:
    """The module of `config`, freshly initialised."""
    return Stack([Layer(config) for _ in range(config.num_layers)], config)


def _configure(values: Values, shapes: Shapes) -> dict[str, Any]:
    half = shapes["s4_layers.0.kernel.C"][1]
    return {**stack_values(values, shapes), "state_size": 2 * half}


def _weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    del config
    return dict(tensors)


S4D = Model(
    name="s4d",
    summary="S4D: diagonal state-space models in convolution form, poles by LegS, Lin or Inv.",
    config=Config,
    build=build,
    inputs=signals,
    presets={"tiny": TINY},
    recipe=Delays(),
    source="arXiv:2206.11893",
    layouts=(
        CheckpointLayout(
            name="state-spaces",
            source="state-spaces/s4 @ e757cef, models/s4/s4d.py, example.py",
            fits=lambda values, keys: "s4_layers.0.kernel.log_dt" in keys,  # noqa: ARG005
            configure=_configure,
            weights=_weights,
            immaterial=IMMATERIAL,
        ),
    ),
)
