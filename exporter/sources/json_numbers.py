"""Numbers that JSON has no word for, as transformers writes them: ``{"__float__": "Infinity"}``."""

import math
from collections.abc import Mapping
from typing import Any

TAG = "__float__"
NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def told(value: Any) -> Any:
    """A value of JSON with every such number as what it is."""
    if isinstance(value, Mapping):
        if value.keys() == {TAG} and str(value[TAG]) in NUMBERS:
            return NUMBERS[str(value[TAG])]
        return {key: told(each) for key, each in value.items()}
    return [told(each) for each in value] if isinstance(value, list | tuple) else value


def written(value: Any) -> Any:
    """A value with every such number in words."""
    if isinstance(value, Mapping):
        return {key: written(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [written(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        name = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return {TAG: name}
    return value
