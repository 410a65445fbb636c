"""What a model takes, input by input, and the function that draws values for given sizes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from intaglio.runtime.arrays import Array
from intaglio.runtime.graph_entry import Below
from intaglio.runtime.step_inputs import UNBOUNDED, limit_in
from intaglio.state import BATCH, TIME

from . import drawing
from .axes import Sizes, Span
from .guess_axes import EXAMPLE

Sampler = Callable[[Sizes, int], dict[str, Tensor]]  # (sizes by symbol, seed) -> inputs


@dataclass(frozen=True)
class InputSpec:
    """One input: like an example, and integers below a bound where they pick something.

    `below` is as `TensorSpec` has it: a number or an axis, or one for each column.  Without an
    example floats are normal, and integers without a bound 0 or 1.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]  # with the names of the free axes
    below: Below | None = None
    example: Tensor | None = field(default=None, compare=False)
    value: float | None = None  # that it always has
    settled: bool = False  # whether other inputs vary enough, so that this one need not

    @property
    def kept(self) -> bool:
        """Whether the example stands for itself, as sizes, scales and places to cut at do."""
        if self.example is None or self.dynamic or self.below is not None:
            return False
        return (
            self.example.ndim == 0
            or not self.example.dtype.is_floating_point
            or (self.example.ndim == 1 and self.settled)
        )

    @property
    def dynamic(self) -> dict[int, str]:
        """Which axes are free, and what they are called."""
        return {axis: dim for axis, dim in enumerate(self.shape) if isinstance(dim, str)}

    def sample(self, sizes: Sizes, generator: torch.Generator) -> Tensor:
        """Draw a tensor whose free axes have `sizes`."""
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in self.shape]
        if self.value is not None:
            return torch.full(shape, self.value, dtype=self.dtype)
        if self.below is not None:
            return self._bounded(limit_in(self.below, sizes), shape, generator)
        if self.example is not None and self.kept:
            return self.example.clone()
        if self.example is not None and self.example.numel():
            fixed = bool(self.shape) and isinstance(self.shape[-1], int)
            return drawing.like(self.example, shape, fixed, generator).to(self.dtype)
        if self.dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(self.dtype)
        return torch.randint(2, shape, generator=generator).to(self.dtype)  # flags as well

    def _bounded(
        self, limit: int | Array, shape: Sequence[int], generator: torch.Generator
    ) -> Tensor:
        """Integers below their limits, and where there is none like those of the example."""
        free = torch.from_numpy(np.asarray(limit == UNBOUNDED))
        bound = torch.from_numpy(np.where(free, 1, limit).astype(np.int64))
        drawn = drawing.below(bound, shape, self.dtype, generator)
        if self.example is None or not self.example.numel() or not bool(free.any()):
            return drawn
        if isinstance(self.shape[-1], int):
            pool = self.example.reshape(-1, self.example.shape[-1])
            like = pool[torch.randint(len(pool), shape[:-1], generator=generator)]
        else:
            pool = self.example.T
            like = pool[torch.randint(len(pool), shape[1:], generator=generator)].T
        return torch.where(free, like.to(self.dtype), drawn)


def sampler(specs: Sequence[InputSpec]) -> Sampler:
    """Return the function that draws all inputs at once, the same for the same seed."""

    def sample(sizes: Sizes, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {spec.name: spec.sample(sizes, generator) for spec in specs}

    return sample


@dataclass(frozen=True, kw_only=True)
class Takes:
    """What a model takes: the free axes of each input, and a function that draws them.

    `sizes` holds sizes of the free axes at which it is traced, `spans` those that it is asked to
    take, where that was said; `notes` says what was guessed.
    """

    dynamic: dict[str, dict[int, str]]
    sample: Sampler
    specs: tuple[InputSpec, ...] = ()
    sizes: Sizes = field(default_factory=lambda: dict(EXAMPLE))
    spans: Mapping[str, Span] = field(default_factory=dict)
    bounds: Mapping[str, Below] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, specs: Sequence[InputSpec], **known: Any) -> Self:
        """What specs say, with the fields of `known`."""
        dynamic = {spec.name: spec.dynamic for spec in specs}
        bounds = {spec.name: spec.below for spec in specs if spec.below is not None}
        return cls(
            dynamic=dynamic, sample=sampler(specs), specs=tuple(specs), bounds=bounds, **known
        )


def fixed_axis(spec: InputSpec) -> tuple[int, str] | None:
    """The axis of a sequence that is fixed in a graph, and what it would be; None otherwise.

    Token ids, and floats of three axes, may be sequences to step through, or whole inputs of one
    size: that is for the user to say.
    """
    ids = len(spec.shape) == 2 and not spec.dtype.is_floating_point
    if not (ids or len(spec.shape) == 3):
        return None
    if isinstance(spec.shape[0], int) and isinstance(spec.shape[1], int):
        return (0, BATCH)
    later = [dim for dim in spec.shape[1:] if isinstance(dim, str)]
    return None if later else (1, TIME)
