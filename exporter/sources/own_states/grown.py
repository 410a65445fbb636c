"""Inputs that come back with entries behind them, as the caches of attention do in other engines.

A state has one size for good, so that nothing is carried of such a model: its caller keeps them.
The cache of an engine is found in the model for all tokens at once, by what attention is.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

CACHE = "as a cache does"


def grown(inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Each input that an output begins with, which is longer along one axis; and that output."""
    for name, before in inputs.items():
        for output, after in outputs.items():
            if after.ndim != before.ndim or after.dtype != before.dtype or not before.numel():
                continue
            longer = [a for a, n in enumerate(before.shape) if n != after.shape[a]]
            if len(longer) != 1 or before.shape[longer[0]] > after.shape[longer[0]]:
                continue
            axis = longer[0]
            if torch.equal(after.narrow(axis, 0, before.shape[axis]), before):
                yield name, output


def told(inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What a user hears of caches that are no states."""
    found = dict(grown(inputs, outputs))
    rest = [name for name in inputs if name not in found]
    if not found or not rest:
        return ()
    pairs = ", ".join(f"{name!r} as {output!r}" for name, output in found.items())
    line = (
        f"Nothing is carried from call to call: inputs come back with more entries, {CACHE} "
        f"({pairs}), and each call is to be given them. For an engine that carries its cache, "
        f"export a forward that takes {' and '.join(rest)} of all tokens, without "
        f"{' and '.join(found)}, and attends to earlier ones under a causal mask: the cache is "
        "made of that."
    )
    return (line,)
