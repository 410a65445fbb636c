"""Numbers in the code and the fields of a module, at which it may begin to do something else."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

LEAST, MOST = 8, 5000  # of numbers of tokens that are worth a run
DEEPEST = 3  # containers in containers, functions that call functions
BEYOND = 1024  # tokens past the largest number, at most


def told_numbers(module: nn.Module) -> tuple[int, ...]:
    """Whole numbers that a module's own code compares with, counts by or keeps, in order.

    Those of functions of its package that it calls by name, of what these close over, and of the
    containers that it keeps are among them.
    """
    found: set[int] = set()
    seen: set[int] = set()
    for part in module.modules():
        home = _package(type(part))
        if home == torch.__name__:
            continue
        for value in (*vars(type(part)).values(), *vars(part).values()):
            found.update(_numbers(value, home, DEEPEST, seen))
    return tuple(sorted(found))


def lengths_beyond(numbers: tuple[int, ...]) -> Iterator[int]:
    """Numbers of tokens at which a module shows what it does otherwise past one of `numbers`.

    One more than each, and half as many again as the largest: of a window the first tokens that it
    leaves out may have left no trace.
    """
    yield from (number + 1 for number in numbers)
    if numbers:
        yield numbers[-1] + min(numbers[-1] // 2, BEYOND) + 2


def _package(value: Any) -> str:
    return str(value.__module__).partition(".")[0]


def _numbers(value: Any, home: str, depth: int, seen: set[int]) -> Iterator[int]:
    """The numbers in `value`, a field, a container or a function, not looked at before."""
    if type(value) is int:
        if LEAST <= abs(value) <= MOST:  # of entries from the end as well
            yield abs(value)
        return
    if depth < 0 or id(value) in seen or isinstance(value, torch.Tensor | nn.Module | type):
        return
    if isinstance(value, staticmethod | classmethod | types.MethodType):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    seen.add(id(value))
    if isinstance(value, types.FunctionType):
        if _package(value) == home:
            yield from _of_function(value, home, depth, seen)
        return
    inside: Any = ()
    if isinstance(value, Mapping):
        inside = value.values()
    elif isinstance(value, slice):
        inside = (value.start, value.stop, value.step)
    elif isinstance(value, tuple | list | set | frozenset):
        inside = value
    elif is_dataclass(value):
        inside = [getattr(value, field.name, None) for field in fields(value)]
    elif _package(type(value)) == home:
        inside = getattr(value, "__dict__", {}).values()
    for each in list(inside):
        yield from _numbers(each, home, depth - 1, seen)


def _of_function(
    function: types.FunctionType, home: str, depth: int, seen: set[int]
) -> Iterator[int]:
    kept = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            kept.append(cell.cell_contents)
        except ValueError:  # nothing yet
            continue
    kept += _named(function.__code__, function.__globals__)
    kept += _constants(function.__code__)
    for each in kept:
        yield from _numbers(each, home, depth - 1, seen)


def _named(code: types.CodeType, names: Mapping[str, Any]) -> Iterator[Any]:
    """What code calls by a name of its file: numbers and functions."""
    for name in code.co_names:
        if isinstance(value := names.get(name), int | float | tuple | types.FunctionType):
            yield value
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _named(inner, names)


def _constants(code: types.CodeType) -> Iterator[Any]:
    """What is written in code as it is, in functions within it too."""
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from _constants(value)
        else:
            yield value
