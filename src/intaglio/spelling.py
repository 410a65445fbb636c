"""Names that are not there, and the known one that was perhaps meant."""

import difflib
from collections.abc import Iterable


def perhaps(name: object, known: Iterable[object]) -> str:
    """``, perhaps 'NEAR'`` for a name that is like one that is known, else nothing."""
    names = {str(each).lower(): str(each) for each in known}
    near = difflib.get_close_matches(str(name).lower(), names, n=1)
    return f", perhaps {names[near[0]]!r}" if near else ""
