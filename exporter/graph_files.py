"""Write the graphs of a bundle so that they share the bytes of their weights.

Locations of external tensors are relative to the bundle, for every graph in it, and never lead
out of it: a runtime hands the bundle's folder to the engine (ONNX Runtime refuses ``..``).
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

THRESHOLD = 1024  # bytes from which a tensor stands outside the graph
ALIGNMENT = 4096  # a page, so that engines can map a tensor into memory


def save_graphs(folder: Path, graphs: Mapping[str, ir.Model]) -> dict[str, tuple[str, ...]]:
    """Write each model to ``folder / name``; return the data files that each one opens.

    Tensors of a graph that an earlier one holds, byte for byte, are not written again.  The same
    graphs give the same files.
    """
    places: dict[bytes, tuple[str, int]] = {}  # SHA-256 of the bytes: file and offset
    opened = {}
    for name, model in graphs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy = model.clone()
        opened[name] = _externalize(copy, folder, f"{name}.data", places)
        proto = ir.to_proto(copy)
        (folder / name).write_bytes(proto.SerializeToString(deterministic=True))
    return opened


def _externalize(
    model: ir.Model, folder: Path, location: str, places: dict[bytes, tuple[str, int]]
) -> tuple[str, ...]:
    """Make the large initializers of `model` external, in place; return the files they are in."""
    used = set()
    path = folder / location
    with path.open("wb") as file:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < THRESHOLD:
                continue
            data = tensor.tobytes()
            digest = hashlib.sha256(data).digest()
            if digest not in places:
                file.write(bytes(-file.tell() % ALIGNMENT))
                places[digest] = (location, file.tell())
                file.write(data)
            where, offset = places[digest]
            used.add(where)
            value.const_value = ir.ExternalTensor(
                where,
                offset,
                len(data),
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=tensor.name or "",
                base_dir=folder,
            )
    if location not in used:
        path.unlink()
    return tuple(sorted(used))


def load_graph(folder: Path, name: str) -> ir.Model:
    """Read the graph ``folder / name`` back; its weights are mapped from the files of `folder`."""
    model = ir.load(folder / name)
    ir.external_data.set_base_dir(model.graph, folder)
    return model
