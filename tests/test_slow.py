"""What exports is slow, however it is reached; all else is not."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import slow

import intaglio
from intaglio.exporter import export as stage
from intaglio.exporter.sources.load import load_source


def by_facade(path: Path) -> None:
    intaglio.export(path, path)


def by_module(path: Path) -> None:
    stage.export(path, path)


def by_import_within(path: Path) -> None:
    from intaglio.exporter.tracing.trace import trace

    trace(load_source(path))


def by_command(run: Callable[..., Any]) -> None:
    run("export", "model.pt")


def by_helper(path: Path) -> None:
    by_import_within(path)


class Helper:
    def __init__(self, path: Path) -> None:
        by_facade(path)


def by_class(path: Path) -> Helper:
    return Helper(path)


def there(times: int) -> None:
    if times:
        and_back(times - 1)
    by_facade(Path())


def and_back(times: int) -> None:
    there(times)


def loads(path: Path) -> None:
    """It reads a source, and exports nothing."""
    load_source(path)


@pytest.mark.parametrize(
    "function",
    [by_facade, by_module, by_import_within, by_command, by_helper, by_class, there, and_back],
)
def test_what_exports_is_found(function: Callable[..., Any]) -> None:
    known = slow.Slow()

    assert known.reaches(function)
    assert known.reaches(and_back)  # whatever was asked before


@pytest.mark.parametrize("function", [loads, load_source])
def test_what_does_not_is_quick(function: Callable[..., Any]) -> None:
    assert not slow.Slow().reaches(function)


@pytest.mark.parametrize("asked", [loads, by_facade])
def test_a_fixture_that_exports_makes_its_tests_slow(asked: Callable[..., Any]) -> None:
    fixtures = SimpleNamespace(name2fixturedefs={"asked": [SimpleNamespace(func=asked)]})
    test: Any = SimpleNamespace(path=Path(__file__), function=loads, _fixtureinfo=fixtures)

    assert slow.Slow()(test) == (asked is by_facade)
