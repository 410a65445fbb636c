"""Graphs in training form: ONNX files that PyTorch or another exporter wrote (.onnx).

The graph takes whole sequences, as the module did.  Its batch and time are the first two axes of
its inputs where these are free; other layouts are named by the user.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common

from intaglio.errors import SourceError
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.examples import InputSpec, name_axes, sampler
from intaglio.exporter.sources.own_states.find import Described
from intaglio.exporter.sources.own_states.graphs import describe_graph
from intaglio.exporter.sources.source import Source
from intaglio.passes.graph import constant, dims
from intaglio.state import BATCH, TIME

FORMAT = "onnx"
OLDEST = 9  # opset from which graphs are read
UNNAMED = 0  # in the shape of an input: a free axis that nobody has named
SHOWN = 4  # names of nodes in a message

EXPORT_AGAIN = (
    "Export it with both free: torch.onnx.export(model, (), 'model.onnx', kwargs=inputs, "
    "dynamic_shapes={'input_ids': {0: 'batch', 1: 'time'}}), for example."
)


def fits(path: Path) -> bool:
    """Whether `path` is called as an ONNX file: its first bytes do not tell."""
    return path.is_file() and path.suffix == ".onnx"


def load(path: Path, options: LoadOptions) -> Source:
    """Read the graph at `path`, with the external data beside it.

    Raises:
        SourceError: if it is damaged, its weights lie elsewhere, it holds operators that are not
            the standard's, or its batch or time is fixed.
        OptionError: if an option says nothing about graphs.
    """
    options.take("an ONNX graph", "axes", "states", "inputs")
    model, sha256 = _read(path)
    common.InlinePass()(model)
    model.functions.clear()
    _check_operators(model, path)
    for name in model.graph.initializers:
        if model.graph.initializers[name] in model.graph.inputs:
            model.graph.inputs.remove(model.graph.initializers[name])
    found = describe_graph(model.graph, path, options)
    if found is None:
        found = Described(specs=_plain_specs(model, path, options))
    for spec, value in zip(found.specs, model.graph.inputs, strict=True):
        value.shape = ir.Shape(list(spec.shape))
    return Source(
        path=path,
        name=path.name,
        format=FORMAT,
        sha256=sha256,
        body=model,
        dynamic={spec.name: spec.dynamic for spec in found.specs},
        sample=sampler(found.specs),
        states=found.states,
        defaults=dict(found.defaults),
        notes=found.notes,
    )


def _plain_specs(model: ir.Model, path: Path, options: LoadOptions) -> tuple[InputSpec, ...]:
    """The inputs of a graph without states of its own."""
    options.take("an ONNX graph without states of its own", "axes", "states")
    specs = name_axes([_spec(value, path) for value in model.graph.inputs], options.axes)
    for spec, value in zip(specs, model.graph.inputs, strict=True):
        _check_free(spec, dims(value) or (), path)
    return specs


def _read(path: Path) -> tuple[ir.Model, str]:
    """The graph with its weights in memory, and the SHA-256 of its files."""
    if not path.stat().st_size:
        raise SourceError(f"{path} is empty: writing it was cut short. Save or copy it again.")
    try:
        proto = onnx.load_model(path, load_external_data=False)
    except Exception as error:  # protobuf's own kinds
        raise SourceError(f"{path} is not a whole ONNX file ({error}). Copy it again.") from error
    if not proto.graph.node:
        raise SourceError(f"{path} is not an ONNX graph, or an empty one.")
    opset = next((entry.version for entry in proto.opset_import if not entry.domain), 0)
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST <= opset <= newest:
        raise SourceError(
            f"{path} is of ONNX opset {opset}; graphs of {OLDEST} to {newest} are read. "
            "Export it again at one of these."
        )
    places = set()
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            places.add(_checked_place(path, tensor.name, entries.get("location", "")))
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, path.parent)
    try:
        model = ir.external_data.load_to_model(model)
    except Exception as error:
        raise SourceError(f"The weights of {path} cannot be read: {error}") from error
    return model, _hash_files([path, *sorted(places)])


def _checked_place(path: Path, name: str, place: str) -> Path:
    """The file `place` of weights, which has to lie in the folder of its graph.

    Elsewhere it might be what the author of the graph may not read; links lead anywhere.
    """
    parts = Path(place).parts
    folder = path.parent
    links = [folder.joinpath(*parts[: i + 1]).is_symlink() for i in range(len(parts))]
    if not place or Path(place).is_absolute() or ".." in parts or any(links) or "\\" in place:
        raise SourceError(
            f"{path}: the weight {name!r} lies in {place!r}, which leaves the folder of the graph. "
            "Only files in that folder are read, and no links."
        )
    if not (folder / place).is_file():
        raise SourceError(
            f"{path}: the file {place!r} with the weight {name!r} is missing. Copy it beside the "
            "graph."
        )
    return folder / place


def _hash_files(paths: Sequence[Path]) -> str:
    """SHA-256 of the graph alone, or of the hashes of all its files."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256"))
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def _check_operators(model: ir.Model, path: Path) -> None:
    """Refuse operators of other domains than the standard's."""
    foreign = [node for node in model.graph.all_nodes() if node.domain not in ("", "ai.onnx")]
    if foreign:
        names = ", ".join(f"{n.domain}::{n.op_type} {n.name!r}" for n in foreign[:SHOWN])
        more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
        raise SourceError(
            f"{path} holds operators that are not of the ONNX standard: {names}{more}. Export the "
            "graph before an engine's optimiser or a quantizer rewrote it."
        )


def _spec(value: ir.Value, path: Path) -> InputSpec:
    """Describe one input: integers below the rows of the tables that it indexes."""
    shape, dtype = dims(value), value.dtype
    if value.name is None or dtype is None or not shape:
        raise SourceError(
            f"{path}: the input {value.name!r} is no tensor of known rank; give it a shape."
        )
    rest = [dim if isinstance(dim, int) else UNNAMED for dim in shape[2:]]
    free: list[int | str] = [BATCH, TIME, *rest]
    kind = torch.from_numpy(dtype.numpy().type(0).reshape(1)).dtype
    return InputSpec(
        value.name,
        kind,
        tuple(free[: len(shape)]),
        high=min(_rows(value), default=2),
        mean=_mean(kind),
    )


def _mean(kind: torch.dtype) -> float:
    return 0.5 if kind is torch.bool else 0.0


def _rows(value: ir.Value) -> Iterator[int]:
    """Rows of the tables that `value`, perhaps cast, indexes."""
    for node, index in value.uses():
        if node.op_type == "Cast":
            yield from _rows(node.outputs[0])
        table = constant(node.inputs[0]) if node.op_type == "Gather" and index == 1 else None
        if table is not None:
            yield table.shape[node.attributes["axis"].as_int() if "axis" in node.attributes else 0]


def _check_free(spec: InputSpec, shape: tuple[int | str, ...], path: Path) -> None:
    """Hold the graph to free batch and time, and to no other free axis."""
    words = "x".join(map(str, shape))
    if UNNAMED in spec.shape:
        raise SourceError(
            f"{path}: the input {spec.name!r} has the axes {words}, which are not batch and time "
            f"first. Say which they are: --axes {spec.name}:batchx80xtime, for example."
        )
    for axis, symbol in spec.dynamic.items():
        if isinstance(shape[axis], int):
            raise SourceError(
                f"{path}: the {symbol} of the input {spec.name!r} is fixed to {shape[axis]} "
                f"({words}). {EXPORT_AGAIN}"
            )
