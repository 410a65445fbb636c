"""Numbers in the code and the fields of a module, at which it may begin to do something else."""

import types
from collections.abc import Iterator
from typing import Any

from torch import nn

LEAST, MOST = 8, 5000  # of numbers of tokens that are worth a run


def told_numbers(module: nn.Module) -> tuple[int, ...]:
    """Whole numbers that a module's own code compares with, counts by or keeps, in order."""
    found: set[int] = set()
    for part in module.modules():
        if type(part).__module__.startswith("torch."):
            continue
        found.update(_whole(vars(part).values()))
        for value in (*vars(type(part)).values(), *vars(part).values()):
            if isinstance(value, types.FunctionType):
                found.update(_whole(value.__defaults__ or ()))
                found.update(_of_code(value.__code__))
    return tuple(sorted(found))


def _of_code(code: types.CodeType) -> Iterator[int]:
    yield from _whole(code.co_consts)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _of_code(inner)


def _whole(values: Any) -> Iterator[int]:
    for value in values:
        if type(value) is int and LEAST <= value <= MOST:
            yield value
