"""What a row of the zoo is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 8


def tokens() -> dict[str, Tensor]:
    """`x` of [batch, time, WIDTH]."""
    return {"x": torch.randn(2, 12, WIDTH)}


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """One module of the zoo.

    Fields:
        make: builds it with random weights; its name is the row's.
        inputs: draws example inputs.
        axes: the free axes by name, as `intaglio.export` takes them.
        constant: whether its states keep one size, however many tokens have been.
        options: further keywords of `intaglio.export`.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], Mapping[str, Tensor]] = tokens
    axes: Mapping[str, Sequence[int | str]] | None = None
    constant: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the function that builds it."""
        return self.make.__name__
