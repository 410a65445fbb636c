"""Inputs that are called like states and lie along time beside others, as the states of a game do.

A state has a size of its own.  An input that has as many entries along an axis as another one, that
can be made longer with it and not be left behind, is a sequence, if nothing else can be made longer
without it: ``states``, ``actions`` and ``returns`` of a Decision Transformer (Chen et al. 2021,
arXiv:2106.01345).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.quiet import quiet

from .kept import as_it_was
from .paired_names import says_state


def beside_others(module: nn.Module, arguments: Mapping[str, Any]) -> set[str]:
    """Names of those among `arguments`; tensors alone are looked at, nested ones not."""
    tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
    found = set()
    for name, x in tensors.items():
        others = {n: y for n, y in tensors.items() if n != name}
        if not says_state(name) or not others:
            continue
        with_it = any(
            _runs(module, arguments, _longer(tensors, axis, size))
            and not _runs(module, arguments, _longer(others, axis, size))
            for axis, size in enumerate(x.shape)
            if axis and any(y.dim() > axis and y.shape[axis] == size for y in others.values())
        )
        without = {
            (axis, size) for y in others.values() for axis, size in enumerate(y.shape) if axis
        }
        if with_it and not any(_runs(module, arguments, _longer(others, *at)) for at in without):
            found.add(name)
    return found


def _longer(tensors: Mapping[str, Tensor], axis: int, size: int) -> dict[str, Tensor]:
    """Those of `size` along `axis` with one entry more, the last one again."""
    return {
        name: torch.cat((x, x.narrow(axis, size - 1, 1)), axis)
        for name, x in tensors.items()
        if size and x.dim() > axis and x.shape[axis] == size
    }


def _runs(module: nn.Module, arguments: Mapping[str, Any], others: Mapping[str, Tensor]) -> bool:
    try:
        with torch.no_grad(), quiet(), as_it_was(module):
            module(**{**arguments, **others})
    except Exception:  # noqa: BLE001  whatever it raises, it does not take them
        return False
    return bool(others)
