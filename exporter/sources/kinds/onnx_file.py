"""Graphs in training form: ONNX files that PyTorch or another exporter wrote (.onnx).

The graph takes whole inputs, as the module did.  What is free in it has a name in the file; batch
and time are told by their place, or named by the user.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common

from intaglio.errors import SourceError
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.axes import Layouts, in_words
from intaglio.exporter.sources.examples import name_axes, read_inputs
from intaglio.exporter.sources.free_sizes import freed
from intaglio.exporter.sources.guess_axes import by_place, example_sizes
from intaglio.exporter.sources.input_spec import InputSpec, Takes, fixed_axis, sampler
from intaglio.exporter.sources.onnx_proto import (
    check_attributes,
    check_functions,
    check_names,
    check_nesting,
    check_tensors,
)
from intaglio.exporter.sources.own_states.find import Described
from intaglio.exporter.sources.own_states.graph_states import describe_graph
from intaglio.exporter.sources.source import Source
from intaglio.exporter.sources.untrusted import read_head
from intaglio.passes import evaluate
from intaglio.passes.graph import constant
from intaglio.passes.run_limits import RunLimits, limited
from intaglio.state import TIME

FORMAT = "onnx"
OLDEST = 7  # opset from which graphs are read
INTEGERS = {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
PLAIN = {ir.DataType[name] for name in INTEGERS | {"BOOL", "FLOAT16", "FLOAT", "DOUBLE"}}
SHOWN = 4  # names of nodes in a message

EXPORT_AGAIN = (
    "Export it with both free: torch.onnx.export(model, (), 'model.onnx', kwargs=inputs, "
    "dynamic_shapes={'input_ids': {0: 'batch', 1: 'time'}}), for example."
)


def fits(path: Path) -> bool:
    """Whether `path` is called as an ONNX file: its first bytes do not tell."""
    return path.suffix == ".onnx" and not path.is_dir()


def load(path: Path, options: LoadOptions) -> Source:
    """Read the graph at `path`, with the external data beside it.

    Raises:
        SourceError: if it is damaged, its weights lie elsewhere, it holds operators that are not
            the standard's, or its batch or time is fixed.
        OptionError: if an option says nothing about graphs.
    """
    options.take("an ONNX graph", "axes", "states", "inputs")
    read_head(path)
    model, sha256 = _read(path)
    with limited(RunLimits.of(model)):
        return _load(model, sha256, path, options)


def _load(model: ir.Model, sha256: str, path: Path, options: LoadOptions) -> Source:
    try:
        common.InlinePass()(model)
    except Exception as error:
        raise SourceError(f"{path}: its functions cannot be written out: {error}.") from error
    model.functions.clear()
    _check_operators(model, path)
    for name in model.graph.initializers:
        if model.graph.initializers[name] in model.graph.inputs:
            model.graph.inputs.remove(model.graph.initializers[name])
    for value in model.graph.outputs:
        _check_tensor(value, path, "output")
    found = None if options.whole else describe_graph(model.graph, path, options)
    loosened = whole = False
    if found is None:
        takes, loosened, whole = _takes(model, path, options)
        found = Described(takes=takes, notes=takes.notes)
    for spec, value in zip(found.takes.specs, model.graph.inputs, strict=True):
        value.shape = ir.Shape(list(spec.shape))
    return Source(
        path=path,
        name=path.name,
        format=FORMAT,
        sha256=sha256,
        body=model,
        dynamic=found.takes.dynamic,
        sample=found.takes.sample,
        sizes=found.takes.sizes,
        spans=found.takes.spans,
        bounds=found.takes.bounds,
        states=found.states,
        defaults=dict(found.defaults),
        notes=found.notes,
        loosened=loosened,
        whole=whole,
    )


def _takes(model: ir.Model, path: Path, options: LoadOptions) -> tuple[Takes, bool, bool]:
    """The inputs of a graph without states, whether its file fixes more, and if it is whole."""
    names: dict[str, str] = {}
    examples = read_inputs(options.inputs, torch.nn.Identity()) if options.inputs else {}
    found = [_spec(value, path, names, examples) for value in model.graph.inputs]
    layouts = Layouts.of(options.axes)
    rich = any(spec.dtype.is_floating_point and len(spec.shape) > 1 for spec in found)
    specs = tuple(replace(spec, settled=rich) for spec in name_axes(found, layouts))
    notes: tuple[str, ...] = ()
    loosened, whole = False, options.whole
    if whole is None and not layouts.inputs:
        specs, notes, whole = _loosened(model, specs, path)
        loosened = bool(notes) and any(spec.dynamic for spec in specs)
    for spec, value in zip(specs, model.graph.inputs, strict=True):
        _check_free(spec, _dims(value), path, whole=whole)
        value.shape = ir.Shape(list(spec.shape))
    own = {
        symbol: 2 if spec.example is None else spec.example.shape[axis]
        for spec in specs
        for axis, symbol in spec.dynamic.items()
    }
    sizes = example_sizes(_runner(model), sampler(specs), own, layouts.spans)
    takes = Takes.of(specs, sizes=sizes, spans=layouts.spans, notes=notes)
    return takes, loosened, bool(whole)


def _loosened(
    model: ir.Model, specs: tuple[InputSpec, ...], path: Path
) -> tuple[tuple[InputSpec, ...], tuple[str, ...], bool | None]:
    """The inputs with axes free that only their file fixes, what to say of it, and if it is whole.

    A sequence whose tokens cannot be freed is taken whole, in the size that it has.
    """
    fixed = [spec for spec in specs if fixed_axis(spec) is not None]
    words = ", ".join(in_words(spec.name, spec.shape) for spec in fixed or specs)
    specs, symbols = freed(model, specs)
    if symbols:
        said = (
            f"{path.name} fixes {words}; run at other sizes, each row"
            f"{' and each token' if TIME in symbols else ''} comes out as in its own, so "
            f"{' and '.join(symbols)} {'are' if len(symbols) > 1 else 'is'} free. To keep the "
            "sizes of the file: --whole."
        )
        return specs, (said,), True if fixed and TIME not in symbols else None
    if not fixed or any(spec.dynamic for spec in specs):
        return specs, (), None
    said = (
        f"{path.name} fixes {words}, and its results depend on that: it is exported for whole "
        f"inputs of this size. {EXPORT_AGAIN}"
    )
    return specs, (said,), True


def _runner(model: ir.Model) -> Any:
    """Runs the graph on inputs by name."""
    try:
        engine = evaluate.session(model)
    except Exception:  # noqa: BLE001  that it does not run is told when it is adopted
        return lambda **_: None
    return lambda **given: engine.run(None, {n: x.numpy() for n, x in given.items()})


def _read(path: Path) -> tuple[ir.Model, str]:
    """The graph with its weights in memory, and the SHA-256 of its files."""
    try:
        proto = onnx.load_model(path, load_external_data=False)
    except Exception as error:  # protobuf's own kinds
        raise SourceError(f"{path} is not a whole ONNX file ({error}). Copy it again.") from error
    if not proto.graph.node:
        raise SourceError(f"{path} is not an ONNX graph, or an empty one.")
    opset = next((entry.version for entry in proto.opset_import if not entry.domain), 0)
    newest = onnx.defs.onnx_opset_version()
    domains = sorted({entry.domain for entry in proto.opset_import if entry.domain})
    if not opset and domains:
        raise SourceError(
            f"{path} holds operators of {', '.join(domains)} alone, and none of the ONNX standard, "
            "which is what can be exported."
        )
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
    check_nesting(proto, path)
    check_functions(proto, path)
    check_names(proto, path)
    check_attributes(proto, path)
    check_tensors(proto, path)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        raise SourceError(f"{path} is not an ONNX graph that holds together: {error}.") from error
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


def _check_tensor(value: ir.Value, path: Path, what: str) -> None:
    """Refuse an input or output that is no tensor of what numpy holds."""
    if not isinstance(value.type, ir.TensorType) or value.dtype not in PLAIN:
        raise SourceError(
            f"{path}: the {what} {value.name!r} is {value.type}; {what}s are tensors of flags, "
            "integers, or floats of 16 bits or more. Cast it, or take it apart, inside the graph."
        )


def _dims(value: ir.Value) -> tuple[int | str, ...]:
    """The dimensions of an input; free ones without a name get that of their place."""
    found = [] if value.shape is None else list(value.shape)
    return tuple(
        dim if isinstance(dim, int) else dim.value or f"{value.name}_{axis}"
        for axis, dim in enumerate(found)
    )


def _spec(
    value: ir.Value, path: Path, names: dict[str, str], examples: Mapping[str, Any]
) -> InputSpec:
    """Describe one input: integers below the rows of the tables that it indexes."""
    _check_tensor(value, path, "input")
    dtype = value.dtype
    if value.name is None or dtype is None or value.shape is None:
        raise SourceError(
            f"{path}: the input {value.name!r} is no tensor of known rank; give it a shape."
        )
    kind = torch.from_numpy(dtype.numpy().type(0).reshape(1)).dtype
    example = examples.get(value.name)
    shape = by_place(value.name, _dims(value), names)
    fits = isinstance(example, torch.Tensor) and example.ndim == len(shape)
    return InputSpec(
        value.name,
        kind,
        shape,
        below=min(_rows(value), default=None),
        example=example if fits else None,
    )


def _rows(value: ir.Value) -> Iterator[int]:
    """Rows of the tables that `value`, perhaps cast, indexes."""
    for node, index in value.uses():
        if node.op_type == "Cast":
            yield from _rows(node.outputs[0])
        table = constant(node.inputs[0]) if node.op_type == "Gather" and index == 1 else None
        if table is not None:
            yield table.shape[node.attributes["axis"].as_int() if "axis" in node.attributes else 0]


def _check_free(
    spec: InputSpec, shape: tuple[int | str, ...], path: Path, *, whole: bool | None
) -> None:
    """Hold the graph to what is asked to be free; a sequence to free batch and time."""
    words = "x".join(map(str, shape))
    for axis, symbol in spec.dynamic.items():
        if isinstance(shape[axis], int):
            raise SourceError(
                f"{path}: the {symbol} of the input {spec.name!r} is fixed to {shape[axis]} "
                f"({words}). {EXPORT_AGAIN}"
            )
    fixed = fixed_axis(spec)
    if fixed is not None and not whole:
        axis, symbol = fixed
        raise SourceError(
            f"{path}: the {symbol} of the input {spec.name!r} is fixed to {shape[axis]} "
            f"({words}). {EXPORT_AGAIN} Or export it as it is, for whole inputs of that size: "
            "--whole."
        )
