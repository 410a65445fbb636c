"""Modules that take arguments by position alone, called by name as all others are."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)


def named_forward(module: nn.Module, names: Sequence[str]) -> None:
    """Let `module.forward` take `names` by name, where it takes some by their place alone.

    Its class is exchanged for a subclass; parameters and submodules stay as they are.
    """
    kind = type(module)
    takes = inspect.signature(kind.forward).parameters
    if not any(p.kind in BY_PLACE for p in takes.values()):
        return
    placed = [
        p.name for p in list(takes.values())[1:] if p.kind is inspect.Parameter.POSITIONAL_ONLY
    ]
    many = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in takes.values())
    known = [n for n, p in takes.items() if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    leading = [n for n in known if takes[n].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]

    def forward(self: nn.Module, **given: Any) -> Any:
        first = [*placed, *(leading[1:] if placed == [] else leading)] if many else placed
        args = [given.pop(name) for name in first if name in given]
        if many:
            args += [given.pop(name) for name in list(given) if name not in known]
        return kind.forward(self, *args, **given)

    self_ = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
    forward.__signature__ = inspect.Signature([self_, *named])  # type: ignore[attr-defined]
    body = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    module.__class__ = type(kind.__name__, (kind,), body)
