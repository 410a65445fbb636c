"""PyTorch's `associative_scan` in the order of time, while a module is captured.

PyTorch computes it by halves, which no tracer follows for any number of tokens.  Since the function
that combines is associative, going from the first entry to the last gives the same

    y_0 = x_0,    y_t = combine(y_{t-1}, x_t),

which is `torch.scan`.  Its first iteration is chosen by position, so that no identity is needed.
"""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

PLACE, NAME = "torch._higher_order_ops.associative_scan", "generic_associative_scan"


@contextlib.contextmanager
def in_order() -> Iterator[None]:
    """Let associative scans go from entry to entry while the context is open."""
    place = importlib.import_module(PLACE)
    original = getattr(place, NAME)
    setattr(place, NAME, _scanned)
    try:
        yield
    finally:
        setattr(place, NAME, original)


def _of_one_pair(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The user's function, of one pair, behind PyTorch's, which maps it over several (`vmap`)."""
    if isinstance(operator, functools.partial):
        mapped_one = operator.keywords.get("combine_fn")
        if isinstance(mapped_one, FunctionType):
            inner = inspect.getclosurevars(mapped_one).nonlocals.get("func")
            if inner is not None:
                return functools.partial(operator, combine_fn=inner)

    def mapped(*given: Tensor) -> list[Tensor]:
        return [y[0] for y in operator(*(x[None] for x in given))]

    return mapped


def _scanned(
    operator: Callable[..., Any],
    leaves: Sequence[Tensor],
    dim: int = 0,
    additional_inputs: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Combine `leaves` along their first axis, as PyTorch's function of that place does.

    Args:
        operator: takes both sides of several pairs at once, along the first axis.
        leaves: what is combined, of one length along `dim`.
        dim: the first axis; PyTorch has moved it there.
        additional_inputs: further arguments of `operator`.
    """
    assert dim == 0
    combine = _of_one_pair(operator)
    first = torch.arange(leaves[0].shape[0], device=leaves[0].device) == 0
    flags = [first.view(-1, *[1] * (x.dim() - 1)).expand(x.shape) for x in leaves]
    count = len(leaves)

    def step(carried: list[Tensor], given: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        here, start = given[:count], given[count:]
        joined = combine(*carried, *here, *additional_inputs)
        pairs = zip(start, here, joined, strict=True)
        found = [torch.where(flag, x, y) for flag, x, y in pairs]
        return found, [y.clone() for y in found]

    zeros = [torch.zeros_like(x[0]) for x in leaves]
    _, found = scan(step, zeros, [*leaves, *flags], dim=0)
    return list(found)
