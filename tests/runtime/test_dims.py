"""Dimensions by arithmetic: what PyTorch and shape inference write, and nothing else."""

import pytest

from intaglio.runtime.dims import size_of, symbols_of

SIZES = {"height": 10, "time": 7}


@pytest.mark.parametrize(
    ("dim", "size"),
    [
        (3, 3),
        ("time", 7),
        ("2*time", 14),
        ("((height - 1)//4) + 1", 3),
        ("Max(1, time - 9)", 1),
        ("ceiling(height/4)", 3),
        ("Mod(height, 4)", 2),
        ("height/4", None),
        ("time - 9", None),
        ("u0", None),
        ("height//0", None),
        ("__import__('os')", None),
        ("time.real", None),
        ("9**9**9", None),
        ("(" * 300 + "time" + ")" * 300, None),
    ],
)
def test_a_size_follows_or_is_none(dim: int | str, size: int | None) -> None:
    assert size_of(dim, SIZES) == size


def test_the_symbols_of_a_dimension_are_its_names() -> None:
    assert symbols_of("Max(1, (height + time)//2)") == {"height", "time"}
    assert symbols_of("a dimension without a name") == {"a dimension without a name"}
    assert symbols_of(4) == set()
