"""One plain forward for the library's modules: named tensors in, a dict of tensors out.

A module of the library takes dozens of options and returns caches, hidden states and losses.  Its
class is exchanged for a subclass whose `forward` takes the inputs asked for, turns the cache off
and keeps the tensors; parameters and submodules stay as they are, under their own names.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

FIXED = {"use_cache": False, "return_dict": True}


def plain_forward(module: nn.Module, inputs: Sequence[str]) -> None:
    """Let `module.forward` take `inputs` alone, by name, and return a dict of tensors."""
    kind = type(module)
    takes = inspect.signature(kind.forward).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    fixed = {name: value for name, value in FIXED.items() if free or name in takes}

    def forward(self: nn.Module, **given: Tensor) -> dict[str, Tensor]:
        outputs = kind.forward(self, **given, **fixed)
        return {name: x for name, x in outputs.items() if isinstance(x, Tensor)}

    self_ = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in inputs]
    forward.__signature__ = inspect.Signature([self_, *named])  # type: ignore[attr-defined]
    body: dict[str, Any] = {"forward": forward, "__module__": kind.__module__}
    module.__class__ = type(kind.__name__, (kind,), body)
