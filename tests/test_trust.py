"""docs/trust.md names the tests that hold its promises, and counts them."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| (.+?) \| .+? \| (`tests/.+?`) \| (\d+) \|$",
    (ROOT / "docs" / "trust.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


def named_in(cell: str) -> list[str]:
    """Files of tests, and functions in one as ``FILE::NAME``."""
    return re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", cell)


def test_every_promise_names_tests_that_are_there() -> None:
    assert len(ROWS) > 20
    for _, cell, number in ROWS:
        assert int(number) >= len(named_in(cell)) > 0
        for name in named_in(cell):
            file, _, function = name.partition("::")
            assert f"def {function}" in (ROOT / file).read_text(encoding="utf-8"), name


def test_a_promise_has_as_many_tests_as_it_says(collected: Counter[str]) -> None:
    """Of files that were collected whole, as all are where all tests run.

    `python benchmarks/attacks.py` writes the numbers anew.
    """
    for promise, cell, number in ROWS:
        names = named_in(cell)
        if all(name.partition("::")[0] in collected for name in names):
            assert sum(collected[name] for name in names) >= int(number), promise


@pytest.fixture
def collected(request: pytest.FixtureRequest) -> Counter[str]:
    """Tests by file and by function; none where the user chose among them."""
    options = request.config.option
    if options.keyword or options.markexpr or any("::" in each for each in request.config.args):
        return Counter()
    tests = [item.nodeid.partition("[")[0] for item in request.session.items]
    return Counter(tests) + Counter(test.partition("::")[0] for test in tests)
