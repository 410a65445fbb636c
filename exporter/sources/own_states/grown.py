"""Inputs that come back with entries behind them, as the caches of attention do in other engines.

A state has one size for good, so that nothing is carried of them as such.  What a module with
caches of its own is exported as, `from_empty` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

CACHE = "as a cache does"
ENTRIES = 3


@dataclass(frozen=True)
class Grown:
    """The output that begins with an input, and the axis along which it is longer."""

    output: str
    axis: int


def with_entries(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Example arguments with a few entries where a cache is empty, which begins like anything."""
    generator = torch.Generator().manual_seed(0)

    def filled(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.numel() or x.shape.count(0) != 1:
            return x
        shape = [size or ENTRIES for size in x.shape]
        return torch.randn(shape, generator=generator).to(x.dtype)

    return {name: tree_map(filled, value) for name, value in arguments.items()}


def grown(inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Grown]:
    """Each input that an output begins with, which is longer along one axis."""
    found: dict[str, Grown] = {}
    for name, before in inputs.items():
        for output, after in outputs.items():
            axis = longer_along(before, after)
            if axis is not None and output not in {each.output for each in found.values()}:
                found[name] = Grown(output, axis)
                break
    return found


def longer_along(before: Tensor, after: Tensor) -> int | None:
    """The axis along which `after` is `before` with entries behind it; None where it is not."""
    if after.ndim != before.ndim or after.dtype != before.dtype:
        return None
    longer = [a for a, n in enumerate(before.shape) if n != after.shape[a]]
    if len(longer) != 1 or before.shape[longer[0]] > after.shape[longer[0]]:
        return None
    begins = after.narrow(longer[0], 0, before.shape[longer[0]])
    return longer[0] if torch.equal(begins, before) else None


def told(inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What a user hears of caches that are no states."""
    found = grown(inputs, outputs)
    rest = [name for name in inputs if name not in found]
    if not found or not rest:
        return ()
    pairs = ", ".join(f"{name!r} as {each.output!r}" for name, each in found.items())
    lines = " ".join(f"--state {name}={each.output}" for name, each in found.items())
    line = (
        f"Nothing is carried from call to call: inputs come back with more entries, {CACHE} "
        f"({pairs}), and each call is to be given them. For an engine that carries its cache, say "
        f"so ({lines}), and give {' and '.join(rest)} of one token as the example; or of all "
        "tokens, to a model that attends to earlier ones under a causal mask."
    )
    return (line,)
