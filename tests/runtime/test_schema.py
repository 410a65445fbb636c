"""The interpreter of JSON Schema reaches the verdicts of the package jsonschema."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from intaglio.runtime.manifest import schema
from intaglio.runtime.schema import ANNOTATIONS, KEYWORDS, faults

REPLACEMENTS: list[Any] = [None, True, -1, 0, 1, 1.0, 0.5, "", "static", "0" * 64, [], ["x"], {}]


def parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in `value` with every key or index in it."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from parts(value[key])


def mutants(entry: Any) -> Iterator[Any]:
    """`entry` with one value replaced or one key removed or added, at every place in turn."""
    for index in range(len(list(parts(entry)))):
        for replacement in REPLACEMENTS:
            mutant = copy.deepcopy(entry)
            container, key = list(parts(mutant))[index]
            container[key] = replacement
            yield mutant
        mutant = copy.deepcopy(entry)
        container, key = list(parts(mutant))[index]
        del container[key]
        if isinstance(container, dict):
            yield mutant
            container["novelty"] = 1
            yield mutant


def test_verdicts_on_mutants_are_those_of_jsonschema(
    make_bundle: Callable[..., Path],
) -> None:
    """A manifest spoilt at every place in many ways is judged alike, and both verdicts occur."""
    entry = json.loads((make_bundle("recurrent", "static") / "manifest.json").read_text())
    entry["graphs"]["main"]["passes"] = [{"name": "fold-constants"}]
    oracle = jsonschema.Draft202012Validator(schema())
    verdicts = []
    for mutant in mutants(entry):
        valid = not list(faults(mutant, schema(), schema()))
        verdicts.append(valid)

        assert valid == oracle.is_valid(mutant), list(faults(mutant, schema(), schema()))
    assert {True, False} == set(verdicts)
    assert len(verdicts) > 500


def test_the_schema_uses_no_keyword_that_would_be_ignored() -> None:
    """A keyword unknown to the interpreter would be a promise that nobody keeps."""

    def check(part: dict[str, Any]) -> None:
        assert set(part) <= KEYWORDS | ANNOTATIONS
        below = [*part.get("properties", {}).values(), *part.get("$defs", {}).values()]
        below += [part[key] for key in ("items", "additionalProperties") if key in part]
        for child in below:
            if isinstance(child, dict):
                check(child)

    check(dict(schema()))


@pytest.mark.parametrize("value", [True, "1", None])
def test_a_boolean_is_no_number(value: Any) -> None:
    """Python's True == 1 does not leak into JSON."""
    assert list(faults(value, {"type": "integer"}, {}, "here"))
