"""Manifests of the schema version before this one, as they would be written now.

Version 1 described the one graph of a bundle at the top; version 2 names graphs.
"""

from typing import Any

from intaglio.runtime.graph_entry import MAIN

SCHEMA_VERSION = 2
_OF_A_GRAPH = {
    *("inputs", "outputs", "states", "past_length", "whole"),
    *("limits", "targets", "passes", "parity"),
}


def upgraded(entry: Any) -> Any:
    """A manifest as JSON values, brought from the version before to `SCHEMA_VERSION`.

    What is of neither is returned as it is, for the schema to refuse.
    """
    if not isinstance(entry, dict) or entry.get("schema_version") != SCHEMA_VERSION - 1:
        return entry
    if "graphs" in entry:
        return entry
    rest = {key: value for key, value in entry.items() if key not in _OF_A_GRAPH}
    main = {key: value for key, value in entry.items() if key in _OF_A_GRAPH}
    return {**rest, "schema_version": SCHEMA_VERSION, "graphs": {MAIN: main}}
