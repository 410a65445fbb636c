"""Checking JSON against the part of JSON Schema that `manifest.schema.json` uses.

A bundle must load without further packages, so the schema is interpreted here; the tests hold
this file to the verdicts of the package jsonschema.  Keywords: type, const, enum, pattern, minimum,
required, properties, additionalProperties, items, $ref into $defs (JSON Schema 2020-12).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

ANNOTATIONS = {"$schema", "$defs", "title", "description"}
KEYWORDS = {
    *("type", "const", "enum", "pattern", "minimum"),
    *("required", "properties", "additionalProperties", "items", "$ref"),
}
_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def faults(value: Any, schema: Schema, root: Schema, where: str = "") -> Iterator[str]:
    """Yield one sentence for each place where `value` does not fit `schema`.

    Args:
        value: what `json.loads` returned, or a part of it.
        schema: the schema of that part.
        root: the whole schema, in which `$ref` is looked up.
        where: path to `value`, as in `states[2].dtype`; empty for the whole.
    """
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    subject = where or "the whole"
    if "const" in schema and value != schema["const"]:
        yield f"{subject} is {value!r}, should be {schema['const']!r}."
    if "enum" in schema and value not in schema["enum"]:
        yield f"{subject} is {value!r}, should be one of {', '.join(map(str, schema['enum']))}."
    if "type" in schema and not _has_type(value, schema["type"]):
        yield f"{subject} is {value!r}, should be of type {_or(schema['type'])}."
        return
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{subject} is {value!r}, should match {schema['pattern']}."
    if isinstance(value, int | float) and value < schema.get("minimum", value):
        yield f"{subject} is {value}, should be at least {schema['minimum']}."
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from faults(item, schema.get("items", {}), root, f"{where}[{index}]")
    if isinstance(value, dict):
        yield from _faults_of_keys(value, schema, root, where)


def _faults_of_keys(
    value: Mapping[str, Any], schema: Schema, root: Schema, where: str
) -> Iterator[str]:
    subject = where or "the whole"
    known = schema.get("properties", {})
    other = schema.get("additionalProperties", {})
    for key in schema.get("required", ()):
        if key not in value:
            yield f"{subject} lacks the key {key!r}."
    for key, item in value.items():
        if key in known:
            yield from faults(item, known[key], root, f"{where}.{key}" if where else key)
        elif other is False:
            yield f"{subject} has the unknown key {key!r}."
        else:
            yield from faults(item, other, root, f"{where}[{key!r}]")


def _has_type(value: Any, types: str | list[str]) -> bool:
    names = [types] if isinstance(types, str) else types
    if isinstance(value, bool):  # in Python a bool is an int, in JSON it is not
        return "boolean" in names
    if isinstance(value, float) and value.is_integer() and "integer" in names:
        return True
    return any(isinstance(value, _TYPES[name]) for name in names)


def _or(types: str | list[str]) -> str:
    return types if isinstance(types, str) else " or ".join(types)
