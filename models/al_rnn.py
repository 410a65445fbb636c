"""AL-RNN: a recurrent network that is linear but for P rectified units, for dynamical systems.

    z_{t+1} = A * z_t + W phi(z_t) + h,    phi rectifies the last P of M units,

of which the first n are what is observed.  Which of the P are positive tells the linear region that
a state lies in: a symbol for each step, of at most 2^P.  A trajectory starts from an observation
x_0 as z_0 = (x_0, the rest of x_0 B) and runs freely, or takes observations in its first units now
and then, which is how it is trained (teacher forcing).

Source: Brenner et al. 2024, arXiv:2410.14240; parameters as in DurstewitzLab/ALRNN-DSR.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.ops import piecewise_linear_rnn

from .layout import CheckpointLayout, Shapes, Values, read_value, renamed
from .model import Model
from .training import Report

MOST_BITS = 62


@dataclass(frozen=True, kw_only=True)
class Config:
    """M `units`: the last `rectified` are (None for a linear map), the first `observed` seen."""

    units: int = 20
    rectified: int | None = 2
    observed: int = 3


class AlmostLinearRNN(nn.Module):
    """Observations in, the next ones and the regions of their states out."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        units, observed = config.units, config.observed
        self.rectified = config.rectified or 0
        if observed > units or self.rectified > min(units, MOST_BITS):
            raise SourceError(
                f"Of {units} units {observed} are observed and {self.rectified} rectified; both "
                f"are at most all of them, rectified ones {MOST_BITS}."
            )
        self.config = config
        drawn = torch.randn(units, units)
        definite = drawn.mT @ drawn / units + torch.eye(units)
        self.A = nn.Parameter((definite / torch.linalg.eigvalsh(definite).max()).diagonal().clone())
        self.W = nn.Parameter(0.01 * torch.randn(units, units))
        self.h = nn.Parameter(torch.zeros(units))
        self.B = nn.Parameter((2 * torch.rand(observed, units) - 1) / math.sqrt(observed))

    def start(self, x: Tensor) -> Tensor:
        """The state [.., M] of a first observation x [.., n]."""
        return torch.cat((x, (x @ self.B)[..., self.config.observed :]), -1)

    def step(self, z: Tensor) -> Tensor:
        """The state after z [.., M], but for h."""
        linear = self.config.units - self.rectified
        bent = torch.cat((z[..., :linear], z[..., linear:].relu()), -1)
        return self.A * z + bent @ self.W.mT

    def forward(self, observation: Tensor, observed: Tensor) -> dict[str, Tensor]:
        """Follow a trajectory from its first observation.

        Args:
            observation: [B, T, n]; the first is where the trajectory starts.
            observed: bool [B, T]; where it is false, the network's own prediction is taken.

        Returns:
            `prediction` [B, T, n] of the observation after each, and `region` int64 [B, T], whose
            bit j says that rectified unit j of the state after it is positive.
        """
        time = torch.arange(observation.shape[1], device=observation.device)
        first = time == 0
        # From a state of zeros, what leads to the second state is added at the first token.
        drive = self.step(self.start(observation)) * first[:, None]
        states, _ = piecewise_linear_rnn(
            *(drive, self.A, self.W, self.h, observation, observed & ~first),
            num_relu=self.rectified,
        )
        return {"prediction": states[..., : self.config.observed], "region": self._region(states)}

    def _region(self, states: Tensor) -> Tensor:
        linear = self.config.units - self.rectified
        positive = (states[..., linear:] > 0).long()
        worth = 2 ** torch.arange(self.rectified, device=states.device)
        return (positive * worth).sum(-1)


def build(config: Config) -> AlmostLinearRNN:
    """The module of `config`, freshly initialised."""
    return AlmostLinearRNN(config)


def inputs(config: Config, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Noise as observations, of which every other one on average is given."""
    return {
        "observation": torch.randn(batch, time, config.observed, generator=generator),
        "observed": torch.rand(batch, time, generator=generator) < 0.5,
    }


def lorenz(steps: int, seed: int, dt: float = 0.01) -> Tensor:
    """A standardised trajectory [steps, 3] of Lorenz's system on its attractor (Runge-Kutta).

    `seed` tells where it starts, a thousand steps before.
    """

    def slope(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        a, b, c = x
        return np.array([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c])

    state, rows = np.array([1.0, 2.0, 20.0]) + seed, []
    for _ in range(steps + 1000):
        k1 = slope(state)
        k2 = slope(state + dt / 2 * k1)
        k3 = slope(state + dt / 2 * k2)
        k4 = slope(state + dt * k3)
        state = state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        rows.append(state)
    path = np.stack(rows[1000:])
    return torch.from_numpy((path - path.mean(0)) / path.std(0, ddof=1)).float()


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Sparse teacher forcing on Lorenz's system: an observation every `forced` steps.

    Mean squared error of all steps; RAdam from `rate` down to a hundredth of it.
    """

    steps: int = 20_000
    batch: int = 16
    time: int = 200
    forced: int = 16
    rate: float = 2e-3
    noise: float = 0.05
    points: int = 30_000
    seed: int = 2

    def train(self, module: nn.Module, report: Report | None, start: Path | None) -> str:
        """As `Training` says.

        Raises:
            SourceError: if there is a checkpoint to start from, or observations are not of 3.
        """
        assert isinstance(module, AlmostLinearRNN)
        if start is not None or module.config.observed != 3:
            raise SourceError(
                "This model is trained from random weights on observations of 3 numbers: leave "
                "out --from, and set observed to 3."
            )
        torch.set_num_threads(1)
        path = lorenz(self.points, 0)
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.RAdam(module.parameters(), lr=self.rate)
        fall = 0.01 ** (1 / self.steps)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, fall)
        for step in range(self.steps):
            starts = torch.randint(self.points - self.time, (self.batch,), generator=generator)
            rows = torch.stack([path[s : s + self.time + 1] for s in starts.tolist()], 1)
            noisy = rows + self.noise * torch.randn(rows.shape, generator=generator)
            loss = descend(module, noisy[:-1], rows[1:], self.forced)
            nn.utils.clip_grad_norm_(module.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            if report is not None and step % 100 == 0:
                report(step, loss)
        return f"mean squared error {loss:.1e} with an observation every {self.forced} steps"


@torch.no_grad()
def descend(module: AlmostLinearRNN, given: Tensor, wanted: Tensor, forced: int) -> float:
    """Set the gradients of the mean squared error of trajectories, and return it.

    What the forward pass and autograd give, by NumPy, whose calls cost a fifth: there are eleven
    for each token, and they are all of the time.

    Args:
        module: what is trained.
        given: [T, B, n]; every `forced`-th takes the place of the first units of the states.
        wanted: [T, B, n], what follows each token.
        forced: tokens from one that is given to the next.
    """
    A, W, h = (p.numpy() for p in (module.A, module.W, module.h))
    start, x, y = module.start(given[0]).numpy(), given.numpy(), wanted.numpy()
    (steps, _, observed), linear = x.shape, module.config.units - module.rectified
    floor = np.full_like(h, -np.inf)
    floor[linear:] = 0
    states = np.empty((steps + 1, *start.shape), start.dtype)
    bent, told, part = np.empty_like(states[1:]), np.empty_like(x), np.empty_like(start)
    states[0], mixing = start, np.ascontiguousarray(W.T)
    for t in range(steps):
        z, after = states[t], states[t + 1]
        if t and t % forced == 0:
            z[:, :observed] = x[t]
        np.maximum(z, floor, out=bent[t])
        np.dot(bent[t], mixing, out=after)
        after += np.multiply(z, A, out=part)
        after += h
        told[t] = after[:, :observed]
    error, positive = told - y, states[:-1] > floor
    slope, back = np.zeros_like(bent), np.empty_like(start)
    slope[..., :observed] = error * (2 / error.size)  # of the loss, by the state after each token
    for t in range(steps - 1, -1, -1):
        np.dot(slope[t], W, out=back)
        back *= positive[t]
        back += np.multiply(slope[t], A, out=part)
        if t % forced == 0:
            back[:, :observed] = 0
        if t:
            slope[t - 1] += back
    flat = slope.reshape(-1, slope.shape[-1])
    module.A.grad = torch.from_numpy((slope * states[:-1]).sum((0, 1)))
    module.W.grad = torch.from_numpy(flat.T @ bent.reshape(flat.shape))
    module.h.grad = torch.from_numpy(flat.sum(0))
    module.B.grad = torch.from_numpy(x[0].T @ back)
    return float(np.square(error).mean())


def _fits(values: Values, keys: Collection[str]) -> bool:
    del values
    return set(keys) == {"A", "W", "h", "B"}


def _configure(values: Values, shapes: Shapes) -> dict[str, Any]:
    observed, units = shapes["B"]
    if shapes["A"] != (units,) or shapes["W"] != (units, units):
        raise SourceError(f"its A is {list(shapes['A'])} and B {list(shapes['B'])}")
    if "P" not in values:
        raise SourceError('its weights do not tell P: pass --config with a file of {"P": 2}')
    rectified = None if values["P"] == 0 else read_value(values, "P", int)
    return {"units": units, "rectified": rectified, "observed": observed}


def _weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    del config
    return renamed(tensors, {name: name for name in ("A", "W", "h", "B")})


AL_RNN = Model(
    name="al-rnn",
    summary="AL-RNN: a piecewise linear map with few regions, for dynamical systems.",
    config=Config,
    build=build,
    inputs=inputs,
    presets={"tiny": Config()},
    recipe=Reconstruction(),
    source="arXiv:2410.14240",
    layouts=(
        CheckpointLayout(
            name="alrnn-dsr",
            source="DurstewitzLab/ALRNN-DSR @ 0bdca24, alrnn_python/AL-RNN_tutorial.ipynb",
            fits=_fits,
            configure=_configure,
            weights=_weights,
            immaterial=(),
        ),
    ),
)
