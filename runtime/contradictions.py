"""What a schema cannot say of a manifest: that its parts fit together and a step can be bound.

A bundle may come from a stranger; whatever passes here leads to an error of ours at worst.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from intaglio.runtime.dims import symbols_of
from intaglio.state import BATCH, CAPACITY, PAST, PAST_LENGTH, TIME, Layout

_GROWS = {Layout.STATIC: CAPACITY, Layout.GROW: PAST}  # the symbol along the axis of each
_OUTPUTS = {True: "no output", False: "an output"}  # by whether the state is prepared
LARGEST = 2**48  # elements of a tensor for one row and token: beyond any memory


def contradictions(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each thing in a manifest of the right schema that cannot be."""
    graphs = entry["graphs"]
    preparing = {graph.get("prepare") for graph in graphs.values()}
    for name, graph in graphs.items():
        where = "" if len(graphs) == 1 else f"In the graph {name!r}: "
        for sentence in (*_graph(graph, name in preparing), *_prepared(name, graph, graphs)):
            yield f"{where}{sentence}"


def _graph(entry: Mapping[str, Any], prepares: bool) -> Iterator[str]:
    states = entry["states"]
    takes = [spec["name"] for spec in entry["inputs"]] + [spec["input"] for spec in states]
    gives = [spec["name"] for spec in entry["outputs"]]
    gives += [spec["output"] for spec in states if spec["output"]]
    takes += [PAST_LENGTH] if entry["past_length"] else []
    conditions = [spec["name"] for spec in entry.get("conditions", ())]
    if entry.get("whole") and states:
        yield "It takes whole inputs, with nothing carried between calls, and has states."
    for what, names in (
        ("inputs and states", takes),
        ("outputs and states", gives),
        ("inputs and conditions", conditions + [spec["name"] for spec in entry["inputs"]]),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield f"{what} have the name {name!r} {count} times."
    given = (*entry["inputs"], *entry.get("conditions", ()))
    known = {BATCH, TIME, *(dim for spec in given for dim in spec["shape"])}
    yield from _bounds(entry, known)
    for spec in entry["outputs"] if not entry.get("whole") else ():
        for dim in spec["shape"]:
            if not symbols_of(dim) <= known and not prepares:
                yield f"The output {spec['name']!r} has the dimension {dim!r}, which no input has."
    for spec in (*entry["inputs"], *entry["outputs"], *entry.get("conditions", ())):
        yield from _size(spec["name"], spec["shape"])
    for record in entry["passes"]:
        if len(record["nodes"]) != 2:
            yield f"The pass {record['name']!r} should count nodes before and after."
    for spec in states:
        yield from _state(spec, entry["limits"]["batch"])
        yield from _size(spec["input"], spec["shape"])


def _bounds(entry: Mapping[str, Any], known: set[int | str]) -> Iterator[str]:
    """Of values by an axis or by columns, and of sizes."""
    for spec in entry["inputs"]:
        below, name = spec.get("below"), f"The input {spec['name']!r}"
        parts = below if isinstance(below, list) else [below]
        nested = [part for part in parts if isinstance(part, list)]
        flat = [part[0] if isinstance(part, list) and part else part for part in parts]
        for axis in flat:
            if isinstance(axis, str) and axis not in known:
                yield f"{name} is bounded by {axis!r}, which no input has."
        if nested and (
            len(nested) < len(parts)
            or any(len(part) != 1 for part in nested)
            or len(spec["shape"]) != 2
            or spec["shape"][0] != len(parts)
        ):
            yield f"{name} has bounds for {len(parts)} rows."
        elif (
            isinstance(below, list)
            and below
            and not nested
            and (spec["shape"][-1:] != [len(below)])
        ):
            yield f"{name} has bounds for {len(below)} columns."
        if below == []:
            yield f"{name} has bounds for no column."
    for symbol, span in entry["limits"].get("sizes", {}).items():
        numbers = [span[0], span[2], span[3]] if len(span) == 4 else [None]
        if None in numbers or not span[2] or (span[1] is not None and span[1] < span[0]):
            yield f"The sizes of {symbol!r} should be the least, the most, a step and a usual one."


def _prepared(name: str, entry: Mapping[str, Any], graphs: Mapping[str, Any]) -> Iterator[str]:
    """What does not fit between a graph and the one that prepares states for it."""
    prepare, conditions = entry.get("prepare"), entry.get("conditions", ())
    prepared = [spec for spec in entry["states"] if spec["layout"] == Layout.PREPARED]
    if prepare is None:
        if prepared or conditions:
            yield "It has prepared states or conditions, and no graph that prepares them."
        return
    if prepare == name or prepare not in graphs:
        yield f"It is prepared by {prepare!r}, which is no other graph of the bundle."
        return
    other = graphs[prepare]
    if other["states"] or other.get("prepare") is not None:
        yield f"It is prepared by {prepare!r}, which should have no states."
    given, takes, outputs = map(_types, (conditions, other["inputs"], other["outputs"]))
    if given != takes:
        yield f"Its conditions are not the inputs of {prepare!r}, which prepares it."
    for spec in prepared:
        if outputs.get(spec["input"]) != (spec["dtype"], spec["shape"]):
            yield f"The state {spec['input']!r} is no output of {prepare!r}, which prepares it."


def _types(specs: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, list[int | str]]]:
    return {spec["name"]: (spec["dtype"], spec["shape"]) for spec in specs}


def _state(spec: Mapping[str, Any], batch: int | None) -> Iterator[str]:
    shape, axis, name = spec["shape"], spec["axis"], f"The state {spec['input']!r}"
    layout = Layout(spec["layout"])
    growing = _GROWS.get(layout)
    if bool(spec["output"]) == (layout is Layout.PREPARED):
        yield f"{name} of the layout {layout} should have {_OUTPUTS[layout is Layout.PREPARED]}."
    if axis is not None and axis >= len(shape):
        yield f"{name} has the axis {axis} but {len(shape)} dimensions."
    elif growing is not None and (axis is None or shape[axis] != growing):
        yield f"{name} of the layout {layout} should have {growing!r} along its axis."
    elif growing is not None and shape[0] not in (BATCH, batch):
        yield f"{name} should have {BATCH!r} as its first dimension."
    elif shape.count(BATCH) > 1:
        yield f"{name} has the dimension {BATCH!r} {shape.count(BATCH)} times."
    symbols = [dim for dim in shape if isinstance(dim, str) and dim != BATCH]
    if layout is not Layout.PREPARED and symbols != ([growing] if growing else []):
        yield f"{name} of the layout {layout} has the dimensions {', '.join(symbols)}."


def _size(name: str, shape: list[int | str]) -> Iterator[str]:
    elements = 1
    for dim in shape:
        elements *= dim if isinstance(dim, int) else 1
    if elements > LARGEST:
        yield f"{name!r} has {elements} elements for one row and token, which nothing can hold."
