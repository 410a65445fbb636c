"""What a model takes, input by input, and the function that draws values for given sizes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from intaglio.state import BATCH, TIME

from . import drawing
from .axes import Below, Sizes, Span
from .guess_axes import EXAMPLE

Sampler = Callable[[Sizes, int], dict[str, Tensor]]  # (sizes by symbol, seed) -> inputs


@dataclass(frozen=True)
class InputSpec:
    """One input: like an example, and integers below a bound where they pick something.

    `below` is a number, one for each column of the last axis, or the name of an axis.  Without an
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
            bound = sizes[self.below] if isinstance(self.below, str) else self.below
            return drawing.below(torch.as_tensor(bound), shape, self.dtype, generator)
        if self.example is not None and self.kept:
            return self.example.clone()
        if self.example is not None and self.example.numel():
            fixed = bool(self.shape) and isinstance(self.shape[-1], int)
            return drawing.like(self.example, shape, fixed, generator).to(self.dtype)
        if self.dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(self.dtype)
        return torch.randint(2, shape, generator=generator).to(self.dtype)  # flags as well


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
