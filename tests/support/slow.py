"""Which tests are slow: those that take a model through an export, or start an interpreter.

Nobody keeps a list.  A test is slow if its code, or that of a fixture or a helper that it uses,
names a function of `LONG` or holds a word of `COMMANDS`.  `make quick` leaves these out.
"""

import functools
import inspect
import itertools
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
FOLDERS = {"models", "trt_plugins"}  # models of full size, and kernels in an interpreter
LONG = {
    ("intaglio", "export"),
    ("intaglio", "verify"),
    ("intaglio.exporter.compile", "compile_source"),
    ("intaglio.exporter.coupled", "couplings"),
    ("intaglio.exporter.export", "export"),
    ("intaglio.exporter.merge", "merge"),
    ("intaglio.exporter.tracing.capture", "capture"),
    ("intaglio.exporter.tracing.trace", "trace"),
    ("sys", "executable"),
    ("torch.export", "export"),
}
COMMANDS = {"adapter", "assemble", "export", "merge", "profile", "subnet"}
FUNCTIONS = (types.FunctionType, type(functools.cache(len)))


class Slow:
    """Tells slow tests; what is known of one function serves all tests that use it."""

    def __init__(self) -> None:
        self._quick: set[types.CodeType] = set()

    def __call__(self, test: pytest.Function) -> bool:
        """Whether `make quick` leaves the test out."""
        if FOLDERS & set(Path(test.path).relative_to(TESTS).parts):
            return True
        fixtures = test._fixtureinfo.name2fixturedefs.items()
        asked = [found[-1].func for name, found in fixtures if name != "systems_traced_once"]
        return any(self.reaches(each) for each in (test.function, *asked))

    def reaches(self, function: Any) -> bool:
        """Whether a function of the tests exports something, itself or through another."""
        seen: set[types.CodeType] = set()
        left = [function]
        while left:
            each = inspect.unwrap(left.pop())
            code = getattr(each, "__code__", None)
            if code is None or code in seen or code in self._quick:
                continue
            if not code.co_filename.startswith(str(TESTS)):
                continue
            seen.add(code)
            for part in _nested(code):
                used = list(_used(part, each.__globals__))
                if _says_so(part) or any(_origin(value) in LONG for value in used):
                    return True
                left += [value for value in used if isinstance(value, FUNCTIONS)]
        self._quick |= seen
        return False


def _says_so(code: types.CodeType) -> bool:
    """Whether it names a command that exports, or imports what exports in its body."""
    words = {word for word in code.co_consts if isinstance(word, str)}
    return bool(COMMANDS & words or LONG & set(itertools.product(code.co_names, code.co_names)))


def _used(code: types.CodeType, names: dict[str, Any]) -> Iterator[Any]:
    """What the names of a piece of code stand for, of modules and classes their entries."""
    for value in (names[name] for name in code.co_names if name in names):
        yield value
        if isinstance(value, types.ModuleType):
            yield from ((value.__name__, attribute) for attribute in code.co_names)
            yield from (vars(value).get(attribute) for attribute in code.co_names)
        elif isinstance(value, type):
            yield from vars(value).values()


def _origin(value: Any) -> Any:
    """Module and name of a function; a pair of these is its own."""
    if isinstance(value, FUNCTIONS):
        return value.__module__, value.__name__
    return value if isinstance(value, tuple) and all(isinstance(x, str) for x in value) else None


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _nested(inner)
