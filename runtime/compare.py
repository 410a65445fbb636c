"""Comparing streams of named arrays step by step, without keeping them.

error(a, b) = max|a - b| / max|b|, both maxima over all steps; b is the reference.  A NaN or an
infinity on one side only is a failure whatever the limit.  Where both sides have it, they do not
differ; such NaN are counted, and where there is nothing else, nothing was compared.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import ParityError

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far one output or state is from its reference.

    Attributes:
        name: of the array.
        error: max|a - b| / max|b|, NaN once one side alone was no number.
        limit: what `error` may be at most.
        difference: max|a - b|.
        reference: max|b|.
        worst_step: where `difference` occurred first, or the first NaN.
        steps: how many arrays were compared.
        undefined: how many numbers were NaN on both sides.
    """

    name: str
    error: float
    limit: float
    difference: float
    reference: float
    worst_step: int | None
    steps: int
    undefined: int = 0

    @property
    def passed(self) -> bool:
        """Whether anything was compared and stayed within the limit."""
        return self.steps > 0 and self.error <= self.limit  # false for NaN

    @property
    def vacuous(self) -> bool:
        """Whether there was nothing but NaN on both sides."""
        return self.undefined > 0 and self.worst_step is None

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest or report; what is no number is a string there."""
        return {
            "error": _plain(self.error),
            "limit": _plain(self.limit),
            "difference": _plain(self.difference),
            "reference": _plain(self.reference),
            "worst_step": self.worst_step,
            "steps": self.steps,
            "undefined": self.undefined,
            "passed": self.passed,
        }


@dataclass
class _Running:
    difference: float = 0.0
    reference: float = 0.0
    worst_step: int | None = None
    steps: int = 0
    undefined: int = 0


class Comparison:
    """Running errors of named arrays against limits; feed it with `add`."""

    def __init__(self, limit: float, limits: Mapping[str, float] | None = None) -> None:
        """Hold every name to `limit`, those in `limits` to their own."""
        self._limit = limit
        self._limits = dict(limits or {})
        self._running: dict[str, _Running] = {}

    def add(self, step: int, found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
        """Compare the arrays of one step: every name in `expected`.

        Raises:
            ParityError: if `found` lacks a name or has another shape.
        """
        for name, reference in expected.items():
            if name not in found:
                raise ParityError(f"{name} is missing at step {step}: nothing to compare it with.")
            if found[name].shape != reference.shape:
                raise ParityError(
                    f"{name} has the shape {found[name].shape} at step {step}, the reference "
                    f"{reference.shape}."
                )
            self._add(self._running.setdefault(name, _Running()), step, found[name], reference)

    def deviations(self) -> list[Deviation]:
        """What was found, by name, in the order in which the names first came."""
        return [
            Deviation(
                name=name,
                error=_ratio(running.difference, running.reference),
                limit=self._limits.get(name, self._limit),
                difference=running.difference,
                reference=running.reference,
                worst_step=running.worst_step,
                steps=running.steps,
                undefined=running.undefined,
            )
            for name, running in self._running.items()
        ]

    @property
    def passed(self) -> bool:
        """Whether anything was compared, and all of it within its limit."""
        found = self.deviations()
        return bool(found) and all(each.passed and not each.vacuous for each in found)

    def to_json(self) -> dict[str, Any]:
        """Verdict and deviations."""
        return {
            "passed": self.passed,
            "deviations": {found.name: found.to_json() for found in self.deviations()},
        }

    def _add(self, running: _Running, step: int, found: Array, reference: Array) -> None:
        running.steps += 1
        if not found.size or math.isnan(running.difference):
            return
        nothing = np.isnan(found) & np.isnan(reference)
        running.undefined += int(nothing.sum())
        if nothing.all():
            return
        a, b = (np.where(nothing, 0, each.astype(np.float64)) for each in (found, reference))
        difference, size = _distance(a, b)
        running.reference = max(running.reference, size)
        if running.worst_step is None or not difference <= running.difference:
            running.difference, running.worst_step = difference, step


def _distance(a: Array, b: Array) -> tuple[float, float]:
    """max|a - b| and max|b|; where both are the same infinity, they do not differ."""
    alike = np.isinf(a) & (a == b)
    a, b = np.where(alike, 0, a), np.where(alike, 0, b)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.nan, 0.0
    return float(np.abs(a - b).max()), float(np.abs(b).max())


def _ratio(difference: float, reference: float) -> float:
    if reference == 0 and difference > 0:
        return math.inf
    return difference / reference if reference else difference


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
