"""The limits of parity that a user gives by name, checked before anything is done."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from intaglio.errors import OptionError
from intaglio.spelling import perhaps


def check_tolerance(tolerance: Mapping[str, Any], names: Iterable[str] | None = None) -> None:
    """Refuse limits that are no numbers from 0, or of other names than `names`, if these are given.

    Raises:
        OptionError: if one is.
    """
    known = None if names is None else list(names)
    for name, limit in tolerance.items():
        number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if not number or not 0 <= limit <= sys.float_info.max:  # neither NaN, which is no number
            raise OptionError(f"The tolerance of {name!r} is {limit!r}; give a number from 0.")
        if known is not None and name not in known:
            raise OptionError(
                f"There is no output or state {name!r} to give a tolerance{perhaps(name, known)}; "
                f"there are: {', '.join(known)}."
            )
