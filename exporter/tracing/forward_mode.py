"""Derivatives along a direction as derivatives of derivatives, while a module is recorded.

PyTorch's forward mode makes every size that it meets a number, so what is recorded of
`torch.func.jvp`, and of `jacfwd` and `hessian`, which call it, would hold for one size alone.
The pull-back u -> J^T u is linear in u, so its own pull-back is v -> J v, at any u: two derivatives
backwards are one forwards (Townsend 2017, "A new trick for calculating Jacobian vector products").
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._functorch import eager_transforms
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from intaglio.errors import TraceError

FORWARD = "_jvp_with_argnums"  # what `jvp` and `jacfwd` end in, by PyTorch's own name
LINE = "`y, t = torch.func.jvp(f, (x,), (v,))`"


@contextmanager
def forwards_by_backwards() -> Iterator[None]:
    """Within, `torch.func.jvp` and what is made of it differentiate backwards twice.

    Raises:
        TraceError: within, where dual numbers or `torch.func.linearize` are used by themselves.
    """
    kept = [
        (owner, name, getattr(owner, name))
        for owner, name in (
            (eager_transforms, FORWARD),
            (forward_ad, "make_dual"),
            (forward_ad, "dual_level"),
        )
    ]
    refused = _refusing("torch.func.linearize or torch.autograd.forward_ad")
    for (owner, name, _), new in zip(kept, (_jvp, refused, refused), strict=True):
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


def _refusing(what: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise TraceError(
            f"The model takes derivatives by {what}, "
            "which fix every size. "
            f"Write {LINE} for the value and the derivative of f at x along v."
        )

    return refuse


def _jvp(
    func: Callable[..., Any],
    primals: Any,
    tangents: Any,
    argnums: Any = None,
    *,
    strict: bool = False,  # noqa: ARG001  a result without the inputs has zeros
    has_aux: bool = False,
) -> Any:
    """As PyTorch's: (value, derivative), with `has_aux` (value, derivative, what is beside it)."""
    places = range(len(primals)) if argnums is None else argnums
    places = (places,) if isinstance(places, int) else tuple(places)
    varied = tuple(primals[place] for place in places)

    def value(*given: Any) -> Any:
        arguments = list(primals)
        for place, entry in zip(places, given, strict=True):
            arguments[place] = entry
        result = func(*arguments)
        return result[0] if has_aux else result

    whole = func(*primals)
    out, beside = whole if has_aux else (whole, None)

    def pull_back(cotangents: Any) -> Any:
        return torch.func.vjp(value, *varied)[1](cotangents)

    anywhere = pytree.tree_map(torch.zeros_like, out)
    (derivative,) = torch.func.vjp(pull_back, anywhere)[1](tuple(tangents))
    return (out, derivative, beside) if has_aux else (out, derivative)
