"""Figures whose decimal points stand below each other."""

import math
from collections.abc import Sequence

DIGITS = 3  # of the smallest figure that are told


def decimals(values: Sequence[float], most: int = 4) -> int:
    """How many decimals tell three digits of the smallest value; the same for a whole table."""
    least = min((value for value in values if value > 0), default=1.0)
    return min(max(DIGITS - 1 - math.floor(math.log10(least)), 0), most)


def fixed(value: float, digits: int) -> str:
    """With so many decimals, and thousands apart."""
    return f"{value:,.{digits}f}"
