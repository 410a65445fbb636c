"""Bundles that say they have an engine of TensorRT: its record, and bytes in its place."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from intaglio.runtime.bundle import Bundle
from intaglio.runtime.graph_entry import MAIN, TargetEntry
from intaglio.runtime.manifest import FileRecord, Manifest
from intaglio.runtime.trt.engine_build import ENGINE, GRAPH, RECORD, TARGET, Binding, Built, Profile
from intaglio.runtime.trt.kernels import INDEX
from intaglio.state import BATCH, CAPACITY, PAST, PAST_LENGTH, TIME

ROOM, MOST_TOKENS, MOST_ROWS = 32, 6, 3
SIZES = {
    "step": {BATCH: (1, 1, MOST_ROWS), TIME: (1, 1, 1), PAST: (0, 8, ROOM)},
    "prefill": {BATCH: (1, 1, MOST_ROWS), TIME: (1, 4, MOST_TOKENS), PAST: (0, 8, ROOM)},
}


def described(manifest: Manifest) -> dict[str, tuple[int | str, ...]]:
    """Symbolic shapes of the inputs of a step graph, static caches of a fixed size."""
    found = {spec.name: spec.shape for spec in manifest.main.inputs}
    found |= {spec.input: spec.shape for spec in manifest.main.states}
    if manifest.main.past_length:
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
    root: Path, version: str, kernels: dict[str, Any] | None = None, flavour: str = "rtx"
) -> Built:
    """Add to a bundle the record of an engine of TensorRT-RTX, and bytes for the engine."""
    manifest = Bundle.open(root).manifest
    shapes = described(manifest)
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
    (root / "trt").mkdir()
    (root / GRAPH).write_bytes((root / "ort/model.onnx").read_bytes())
    (root / ENGINE).write_bytes(b"an engine")
    (root / RECORD).write_text(json.dumps(built.to_json()))
    (root / INDEX).write_text(json.dumps({"kernels": kernels or {}, "nodes": {}}))
    files = {name: FileRecord.of(root / name) for name in (GRAPH, ENGINE, RECORD, INDEX)}
    target = TargetEntry(path=GRAPH, opset=24, data=manifest.main.targets["ort"].data)
    main = replace(manifest.main, targets={**manifest.main.targets, TARGET: target})
    complete = replace(manifest.with_graph(MAIN, main), files={**manifest.files, **files})
    complete.save(root / "manifest.json")
    return built
