"""Records of JSON held to the types of the dataclass that they become, before anyone uses them."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def misfit(value: Any, kind: Any, where: str = "") -> str | None:
    """What in `value`, a dataclass or a part of one, is of another type than it is said to be.

    Returns:
        A sentence's end, as ``bytes is 'x'``; None if all fits.
    """
    if is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        parts = [(f"{where}.{f.name}".lstrip("."), f.name) for f in fields(value)]
        found = (misfit(getattr(value, name), hints[name], path) for path, name in parts)
        return next((each for each in found if each), None)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, tuple):
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
        if len(kinds) != len(value):
            return f"{where} is {value!r}"
        found = (misfit(v, k, where) for v, k in zip(value, kinds, strict=True))
    elif origin in (Mapping, dict) and isinstance(value, Mapping):
        found = (misfit(v, inner[1], f"{where}[{k!r}]") for k, v in value.items())
    elif origin in (Sequence, list) and isinstance(value, list | tuple):
        found = (misfit(v, inner[0], where) for v in value)
    else:
        return None if _plain(value, kind) else f"{where} is {value!r}"
    return next((each for each in found if each), None)


def _plain(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is UnionType:
        return any(_plain(value, one) for one in get_args(kind))
    if isinstance(value, bool) and kind is not bool:
        return False
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(kind, type) and isinstance(value, kind)
