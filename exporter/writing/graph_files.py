"""Write the graphs of a bundle so that they share the bytes of their weights.

Locations of external tensors are relative to the bundle, for every graph in it, and never lead
out of it: a runtime hands the bundle's folder to the engine (ONNX Runtime refuses ``..``).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from intaglio.graph_keys import PARTS
from intaglio.passes.collection import uncollected
from intaglio.runtime.graph_entry import MAIN

THRESHOLD = 1024  # bytes from which a tensor stands outside the graph
ALIGNMENT = 4096  # a page, so that engines can map a tensor into memory


def place(path: str, graph: str) -> str:
    """Where the file of a graph lies that is called `path` for the main one."""
    return path if graph == MAIN else str(PurePosixPath(path).with_stem(graph))


def own_place(path: str, graph: str) -> str:
    """As `place`, for a graph that has further files beside it: in a folder of its own."""
    where = PurePosixPath(path)
    return path if graph == MAIN else str(where.parent / graph / where.name)


def save_graphs(folder: Path, graphs: Mapping[str, ir.Model]) -> dict[str, tuple[str, ...]]:
    """Write each model to ``folder / name``; return the data files that each one opens.

    Tensors of a graph that an earlier one holds, byte for byte, are not written again; those that
    a later graph joins to one lie one after the other, so that it finds them joined.  The same
    graphs give the same files.
    """
    with uncollected():
        return _save_graphs(folder, graphs)


def _save_graphs(folder: Path, graphs: Mapping[str, ir.Model]) -> dict[str, tuple[str, ...]]:
    places: dict[bytes, tuple[str, int]] = {}  # SHA-256 of the bytes: file and offset
    joined = [parts for model in graphs.values() for parts in _joined(model)]
    opened = {}
    for name, model in graphs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy = model.clone()
        opened[name] = _externalize(copy, folder, f"{name}.data", places, joined)
        proto = ir.to_proto(copy)
        (folder / name).write_bytes(proto.SerializeToString(deterministic=True))
    return opened


def _joined(model: ir.Model) -> Iterator[list[str]]:
    """Names of the initializers that an initializer of `model` is made of."""
    for value in model.graph.initializers.values():
        if PARTS in value.metadata_props:
            yield json.loads(value.metadata_props[PARTS])


def _externalize(
    model: ir.Model,
    folder: Path,
    location: str,
    places: dict[bytes, tuple[str, int]],
    joined: Sequence[Sequence[str]],
) -> tuple[str, ...]:
    """Make the large initializers of `model` external, in place; return the files they are in."""
    used = set()
    path = folder / location
    with path.open("wb") as file:
        for values in _runs(model.graph, joined):
            data = [_bytes(value) for value in values]
            places_of_all = [hashlib.sha256(part).digest() for part in data]
            whole = hashlib.sha256(b"".join(data)).digest()
            if whole not in places:
                file.write(bytes(-file.tell() % ALIGNMENT))
                places[whole] = (location, file.tell())
                file.writelines(data)
            where, offset = places[whole]  # of an earlier graph, perhaps as one tensor
            for digest, part in zip(places_of_all, data, strict=True):
                places.setdefault(digest, (where, offset))
                offset += len(part)
            for value, digest, part in zip(values, places_of_all, data, strict=True):
                where, offset = places[digest]
                used.add(where)
                tensor = value.const_value
                assert tensor is not None
                value.const_value = ir.ExternalTensor(
                    where,
                    offset,
                    len(part),
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=tensor.name or "",
                    base_dir=folder,
                )
    if location not in used:  # nor by later graphs
        path.unlink()
        for digest in [digest for digest, (where, _) in places.items() if where == location]:
            del places[digest]
    return tuple(sorted(used))


def _runs(graph: ir.Graph, joined: Sequence[Sequence[str]]) -> Iterator[list[ir.Value]]:
    """Initializers to be written one after the other; those of `joined` together."""
    large = {
        name: value
        for name, value in graph.initializers.items()
        if value.const_value is not None
        and value.const_value.dtype != ir.DataType.STRING
        and value.const_value.nbytes >= THRESHOLD
    }
    together = {name: parts for parts in joined if all(p in large for p in parts) for name in parts}
    done: set[str] = set()
    for name in large:
        if name not in done:
            names = together.get(name, [name])
            done.update(names)
            yield [large[each] for each in names]


def _bytes(value: ir.Value) -> bytes:
    assert value.const_value is not None
    return value.const_value.tobytes()
