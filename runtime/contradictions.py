"""What a schema cannot say of a manifest: that its parts fit together and a step can be bound.

A bundle may come from a stranger; whatever passes here leads to an error of ours at worst.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from intaglio.state import BATCH, CAPACITY, PAST, PAST_LENGTH, TIME, Layout

_GROWS = {Layout.STATIC: CAPACITY, Layout.GROW: PAST}  # the symbol along the axis of each
LARGEST = 2**48  # elements of a tensor for one row and token: beyond any memory


def contradictions(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each thing in a manifest of the right schema that cannot be."""
    states = entry["states"]
    takes = [spec["name"] for spec in entry["inputs"]] + [spec["input"] for spec in states]
    gives = [spec["name"] for spec in entry["outputs"]] + [spec["output"] for spec in states]
    takes += [PAST_LENGTH] if entry["past_length"] else []
    for what, names in (("inputs", takes), ("outputs", gives)):
        for name, count in Counter(names).items():
            if count > 1:
                yield f"{what} and states have the name {name!r} {count} times."
    known = {BATCH, TIME, *(dim for spec in entry["inputs"] for dim in spec["shape"])}
    for spec in entry["outputs"]:
        for dim in spec["shape"]:
            if isinstance(dim, str) and dim not in known:
                yield f"The output {spec['name']!r} has the dimension {dim!r}, which no input has."
    for spec in (*entry["inputs"], *entry["outputs"]):
        yield from _size(spec["name"], spec["shape"])
    for record in entry["passes"]:
        if len(record["nodes"]) != 2:
            yield f"The pass {record['name']!r} should count nodes before and after."
    for spec in states:
        yield from _state(spec, entry["limits"]["batch"])
        yield from _size(spec["input"], spec["shape"])


def _state(spec: Mapping[str, Any], batch: int | None) -> Iterator[str]:
    shape, axis, name = spec["shape"], spec["axis"], f"The state {spec['input']!r}"
    growing = _GROWS.get(Layout(spec["layout"]))
    if axis is not None and axis >= len(shape):
        yield f"{name} has the axis {axis} but {len(shape)} dimensions."
    elif growing is not None and (axis is None or shape[axis] != growing):
        yield f"{name} of the layout {spec['layout']} should have {growing!r} along its axis."
    elif not shape or shape[0] not in (BATCH, batch):
        yield f"{name} should have {BATCH!r} as its first dimension."
    symbols = [dim for dim in shape if isinstance(dim, str) and dim != BATCH]
    if symbols != ([growing] if growing else []):
        yield f"{name} of the layout {spec['layout']} has the dimensions {', '.join(symbols)}."


def _size(name: str, shape: list[int | str]) -> Iterator[str]:
    elements = 1
    for dim in shape:
        elements *= dim if isinstance(dim, int) else 1
    if elements > LARGEST:
        yield f"{name!r} has {elements} elements for one row and token, which nothing can hold."
