"""Figures of one table have as many decimals as tell the smallest."""

import pytest

from intaglio.report.figures import decimals, fixed


@pytest.mark.parametrize(
    ("values", "digits"),
    [([0.616, 202.5], 3), ([0.0616], 4), ([12.5, 99], 1), ([150, 3e4], 0), ([0.0], 2), ([], 2)],
)
def test_decimals(values: list[float], digits: int) -> None:
    assert decimals(values) == digits


def test_fixed() -> None:
    assert fixed(1234.5678, 2) == "1,234.57"
