"""Records are held to the types of their fields, at any depth."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from intaglio.runtime.typed import misfit


@dataclass(frozen=True)
class Inner:
    name: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Outer:
    inner: tuple[Inner, ...]
    shapes: Mapping[str, tuple[int, int]]
    seconds: float
    limit: int | None


def test_what_fits_says_nothing() -> None:
    assert misfit(Outer((Inner("a", (1, 2)),), {"x": (1, 2)}, 3, None), Outer) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inner": (Inner("a", (1, "2")),)}, "sizes"),  # type: ignore[arg-type]
        ({"shapes": {"x": (1, 2, 3)}}, r"shapes\['x'\]"),
        ({"seconds": "3"}, "seconds is '3'"),
        ({"limit": True}, "limit is True"),
    ],
)
def test_what_does_not_is_named(change: Mapping[str, Any], said: str) -> None:
    values: dict[str, Any] = {"inner": (), "shapes": {}, "seconds": 1.0, "limit": 1, **change}

    found = misfit(Outer(**values), Outer)

    assert found is not None
    assert re.search(said, found)
