"""Bundles that say they have an engine of TensorRT: its record, and bytes in its place."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from intaglio.exporter.writing.graph_files import own_place
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.graph_entry import MAIN, GraphEntry, TargetEntry
from intaglio.runtime.manifest import FileRecord
from intaglio.runtime.trt.engine_build import ENGINE, GRAPH, RECORD, TARGET, Binding, Built, Profile
from intaglio.runtime.trt.kernels import INDEX
from intaglio.state import BATCH, CAPACITY, PAST, PAST_LENGTH, TIME

ROOM, MOST_TOKENS, MOST_ROWS, MOST_SOURCE = 32, 6, 3, 8
SIZES = {
    name: {BATCH: (1, 1, MOST_ROWS), TIME: time, PAST: (0, 8, ROOM), "source": (1, 4, MOST_SOURCE)}
    for name, time in {"step": (1, 1, 1), "prefill": (1, 4, MOST_TOKENS)}.items()
}


def described(entry: GraphEntry) -> dict[str, tuple[int | str, ...]]:
    """Symbolic shapes of the inputs of a step graph, static caches of a fixed size."""
    found = {spec.name: spec.shape for spec in entry.inputs}
    found |= {spec.input: spec.shape for spec in entry.states}
    if entry.past_length:
        found[PAST_LENGTH] = (BATCH,)
    return {n: tuple(ROOM if d == CAPACITY else d for d in shape) for n, shape in found.items()}


def profile(name: str, shapes: dict[str, tuple[int | str, ...]]) -> Profile:
    def sized(shape: tuple[int | str, ...], which: int) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else SIZES[name][d][which] for d in shape)

    return Profile(
        name=name,
        shapes={
            n: (sized(shape, 0), sized(shape, 1), sized(shape, 2)) for n, shape in shapes.items()
        },
    )


def add_engine(
    root: Path,
    version: str,
    kernels: dict[str, Any] | None = None,
    flavour: str = "rtx",
    graph: str = MAIN,
    dtype: str = "float32",
) -> Built:
    """Add to a graph of a bundle the record of an engine of TensorRT-RTX, and bytes for it."""
    manifest = Bundle.open(root).manifest
    entry = manifest.graphs[graph]
    shapes = described(entry)
    built = Built(
        flavour=flavour,
        version=version,
        capabilities=(86, 89),
        profiles=tuple(profile(name, shapes) for name in SIZES),
        inputs=tuple(
            Binding(name=n, dtype="FLOAT", shape=tuple(d if isinstance(d, int) else -1 for d in s))
            for n, s in shapes.items()
        ),
        outputs=(),
        layers=(),
        bytes=9,
        seconds=0.0,
    )
    path, engine, record, index = (own_place(f, graph) for f in (GRAPH, ENGINE, RECORD, INDEX))
    ort = entry.targets["ort"]
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes((root / ort.path).read_bytes())
    (root / engine).write_bytes(f"the engine of {graph}".encode())
    (root / record).write_text(json.dumps(built.to_json()))
    (root / index).write_text(json.dumps({"kernels": kernels or {}, "nodes": {}}))
    files = {name: FileRecord.of(root / name) for name in (path, engine, record, index)}
    target = TargetEntry(path=path, opset=24, data=ort.data, dtype=dtype)
    made = replace(entry, targets={**entry.targets, TARGET: target})
    complete = replace(manifest.with_graph(graph, made), files={**manifest.files, **files})
    complete.save(root / "manifest.json")
    return built
