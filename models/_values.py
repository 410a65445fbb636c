"""Plain values of configs: whether one is of the kind that a field has, and what that is called."""

import math
from collections.abc import Sequence
from typing import Any, get_args, get_origin


def fits(value: object, kind: Any) -> bool:
    """Whether a field of this annotation takes `value`; integers are sizes and counts."""
    if get_origin(kind) is tuple:  # of any length: tuple[str, ...]
        items = value if isinstance(value, Sequence) and not isinstance(value, str) else None
        return items is not None and all(fits(item, get_args(kind)[0]) for item in items)
    if alternatives := get_args(kind):
        return any(fits(value, alternative) for alternative in alternatives)
    if isinstance(value, bool):
        return kind is bool
    if kind is int:
        return isinstance(value, int) and value >= 1
    if kind is float:
        return isinstance(value, int | float) and -math.inf < value < math.inf
    return isinstance(value, kind)


def words(kind: Any) -> str:
    """What a field of this annotation takes, in words."""
    if get_origin(kind) is tuple:
        return f"a list, each entry {words(get_args(kind)[0])}"
    names = {int: "an integer of at least 1", float: "a number", bool: "true or false"}
    return " or ".join(
        "null" if part is type(None) else names.get(part, f"of type {part.__name__}")
        for part in get_args(kind) or (kind,)
    )
