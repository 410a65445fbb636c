"""Numbers that JSON has no word for go there and come back."""

import json
import math

from intaglio.exporter.sources.json_numbers import told, written


def test_numbers_go_into_json_and_come_back() -> None:
    values = {"a": [0.0, math.inf, (-math.inf, 1)], "b": {"c": 2, "d": "Infinity"}}

    there = json.loads(json.dumps(written(values), allow_nan=False))

    assert told(there) == {"a": [0.0, math.inf, [-math.inf, 1]], "b": {"c": 2, "d": "Infinity"}}
    assert math.isnan(told(written(math.nan)))


def test_what_only_looks_like_one_stays() -> None:
    for value in ({"__float__": "many"}, {"__float__": "NaN", "more": 1}, {"float": "NaN"}):
        assert told(value) == value
