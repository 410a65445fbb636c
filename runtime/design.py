"""Design by gradients that an engine gives: two losses, balanced as it goes.

An engine takes designs z and gives two losses and a score of them, with the gradients of the three
by z.  Adam descends g L_1 + (1 - g) L_2.  The balance g and the rate of each design follow the
score: along the step that they make the score should rise,

    g    <- clip(g - Adam(<grad a, r (grad L_1 - grad L_2)>), 0, 1)            adaptive balance
    rate  = clip(0.1 - 0.01 <grad a, step>, 1e-4, 0.5), from the second step on  adaptive rate

Everything is numpy, and each design keeps numbers of its own.
Source: Chen et al. 2023, arXiv:2301.02931, section 3.3.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError

Array = npt.NDArray[Any]
Engine = Callable[[Array], Mapping[str, Array]]
DECAYS, SMALL = (0.9, 0.999), 1e-8


@dataclass
class Adam:
    """Moments of gradients [B, ...] (Kingma & Ba 2014, arXiv:1412.6980)."""

    first: Any = 0.0
    second: Any = 0.0
    steps: int = 0

    def direction(self, gradient: Array) -> Array:
        """The normalised step for `gradient`, which is taken into the moments."""
        fast, slow = DECAYS
        self.steps += 1
        self.first = fast * self.first + (1 - fast) * gradient
        self.second = slow * self.second + (1 - slow) * gradient**2
        mean = self.first / (1 - fast**self.steps)
        size = np.sqrt(self.second / (1 - slow**self.steps))
        step: Array = mean / (size + SMALL)
        return step


@dataclass(frozen=True, kw_only=True)
class GradientNames:
    """The outputs of the engine that are read: gradients by the design, of its shape."""

    first: str = "forward_gradient"
    second: str = "backward_gradient"
    score: str = "score_gradient"


@dataclass
class Descent:
    """Designs [B, ...] on their way down two losses; `step` goes on by one.

    Args:
        engine: of the designs, what it gives by name.
        designs: where to begin, float32.
        rate: of Adam.
        balance: the weight of the first loss at first; it stays where `adapt_balance` is off.
        adapt_balance: let the balance of each design follow the score.
        adapt_rate: let the rate of each design follow the score.
        names: of the engine's outputs.
    """

    engine: Engine
    designs: Array
    rate: float = 0.1
    balance: Any = 0.5
    adapt_balance: bool = True
    adapt_rate: bool = False
    names: GradientNames = field(default_factory=GradientNames)
    _moments: Adam = field(default_factory=Adam)
    _balance_moments: Adam = field(default_factory=Adam)

    def __post_init__(self) -> None:
        self.balance = np.full(len(self.designs), self.balance, dtype=np.float64)
        if not ((self.balance >= 0) & (self.balance <= 1)).all():
            raise InputError("The balance of two losses lies between 0 and 1.")

    def step(self) -> Mapping[str, Array]:
        """Move every design by one step; what the engine gave of them before.

        Raises:
            InputError: if the engine has no such gradients, or they are no numbers.
        """
        given = self.engine(self.designs)
        first, second, score = (self._read(given, n) for n in vars(self.names).values())
        if self.adapt_balance:
            along = _inner(score, self.rate * (first - second))
            moved = self.balance - self.rate * self._balance_moments.direction(along)
            self.balance = np.clip(moved, 0, 1)
        share = self.balance.reshape(-1, *[1] * (first.ndim - 1))
        direction = self._moments.direction(share * first + (1 - share) * second)
        rates = np.full(len(direction), self.rate)
        if self.adapt_rate and self._moments.steps > 1:
            rates = np.clip(0.1 - 0.01 * _inner(score, direction), 1e-4, 0.5)
        moved = self.designs - rates.reshape(share.shape) * direction
        self.designs = moved.astype(self.designs.dtype)
        return given

    def run(self, steps: int) -> Iterator[Mapping[str, Array]]:
        """As many steps."""
        for _ in range(steps):
            yield self.step()

    def _read(self, given: Mapping[str, Array], name: str) -> Array:
        if name not in given:
            raise InputError(
                f"The engine has no output {name!r}, it has {', '.join(given)}. Say which hold the "
                "gradients: names=GradientNames(first=..., second=..., score=...)."
            )
        value = given[name]
        if value.shape != self.designs.shape or not np.isfinite(value).all():
            raise InputError(
                f"The engine's {name!r} of shape {value.shape} should be numbers, one for each of "
                f"the designs' {self.designs.shape}."
            )
        return value.astype(np.float64)


def _inner(a: Array, b: Array) -> Array:
    product: Array = (a * b).reshape(len(a), -1).sum(-1)
    return product
