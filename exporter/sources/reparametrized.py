"""Weights that PyTorch computes before each call, from others, become parameters of their own.

`torch.nn.utils.parametrizations` (weight and spectral norm, orthogonal maps, the user's own),
their older forms as hooks, and the masks of `torch.nn.utils.prune` depend on weights alone.  Under
the name that the module uses, ``layer.weight``, they can be quantized, compared and named.
"""

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def settle(module: nn.Module) -> tuple[str, ...]:
    """Give `module`, in eval mode, such weights for good, in place; return notes for people."""
    with torch.no_grad():
        names = [
            f"{path}.{name}".lstrip(".")
            for path, part in list(module.named_modules())
            for name in (*_parametrized(part), *_hooked(part))
        ]
    module.requires_grad_(requires_grad=False)
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return (f"Computed once, from what parametrizes them: {shown}.",) if names else ()


def _parametrized(part: nn.Module) -> Iterator[str]:
    if not parametrize.is_parametrized(part):
        return
    _give_own_class(part)
    maps: nn.ModuleDict = part.parametrizations  # type: ignore[assignment]
    for name, chain in list(maps.items()):
        value = _in_double(chain)
        parametrize.remove_parametrizations(part, name, leave_parametrized=True)
        kept: torch.Tensor = getattr(part, name)
        if value is not None:
            kept.copy_(value)
        if name not in dict(part.named_parameters(recurse=False)):  # it was made of several
            delattr(part, name)
            part.register_parameter(name, nn.Parameter(kept))
        yield name


def _give_own_class(part: nn.Module) -> None:
    """PyTorch removes the property from the class, which a copy shares with its original."""
    shared = type(part)
    own = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    part.__class__ = type(shared.__name__, shared.__bases__, own)


def _in_double(chain: nn.Module) -> torch.Tensor | None:
    """What a chain of parametrizations gives in float64; None where it fixes its own type."""
    try:
        value: torch.Tensor = copy.deepcopy(chain).double()()
    except Exception:  # noqa: BLE001  any refusal is the answer
        return None
    return value


def _hooked(part: nn.Module) -> Iterator[str]:
    """Older forms: hooks that set an attribute before each call."""
    for hook in list(part._forward_pre_hooks.values()):  # noqa: SLF001  PyTorch lists it nowhere else
        if isinstance(hook, WeightNorm):
            hook(part, ())
            remove_weight_norm(part, hook.name)
            yield hook.name
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(part, hook.name)
            yield hook.name
        elif isinstance(hook, prune.BasePruningMethod):
            name = hook._tensor_name  # noqa: SLF001
            prune.remove(part, name)  # type: ignore[no-untyped-call]
            yield name
