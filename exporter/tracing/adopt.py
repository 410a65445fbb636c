"""A graph that was exported elsewhere, in the form that `trace` gives: opset 27, shapes by name.

What the file's authors promised is not taken on trust: the result is compared with the file as
ONNX Runtime runs it, at several sizes of batch and time, one token included.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
from torch import Tensor

from intaglio.errors import PassError, TraceError
from intaglio.exporter.sources.axes import Sizes, Span
from intaglio.exporter.sources.source import EXAMPLE_TIME, Source
from intaglio.passes import evaluate
from intaglio.passes.convert_opset import convert_opset
from intaglio.passes.run_limits import LimitedSession, RunLimits, limited
from intaglio.passes.shapes import infer_shapes, shape_bodies
from intaglio.quiet import summary
from intaglio.state import BATCH, TIME

from .metadata import strip
from .running import in_words, several, taken_sizes
from .whole import AS_WHOLE

LIMIT = 1e-3  # of the largest output, as for traces of modules
SIZES = tuple(
    {BATCH: batch, TIME: time}
    for batch, time in ((1, 1), (4, EXAMPLE_TIME + 4), (2, EXAMPLE_TIME + 131))
)
RUNS = 5
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
STEPS = (1, 4, 2, 9, 5, 11, 3)  # beyond the first run, in the steps of an axis

Arrays = Mapping[str, npt.NDArray[Any]]


def adopt_graph(source: Source, opset: int) -> tuple[ir.Model, dict[str, Span]]:
    """Return a copy of the graph of `source` at `opset`, with all shapes and module paths.

    Beside it, the sizes that each free axis takes.

    Raises:
        TraceError: if it cannot be brought to that opset, cannot be run, or computes something
            else then.
    """
    assert isinstance(source.body, ir.Model)
    with limited(RunLimits.of(source.body)):
        return _adopted(source, _copied(source), opset)


def _copied(source: Source) -> ir.Model:
    assert isinstance(source.body, ir.Model)
    try:
        return source.body.clone()
    except RuntimeError as error:  # a branch, for example, that gives a name which it reads
        raise TraceError(
            f"{source.path}: a graph in it reads a value before anything gives it, or gives one "
            "under the name of another. Export it again; onnx.checker tells where."
        ) from error


def _adopted(source: Source, model: ir.Model, opset: int) -> tuple[ir.Model, dict[str, Span]]:
    _name_nodes(model.graph)
    strip(model)
    try:
        model = convert_opset(model, opset)
    except PassError as error:
        raise TraceError(f"{source.path}: {error}") from error
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    engine = open_original(source)
    spans = {symbol: source.spans.get(symbol, Span()) for symbol in source.symbols}
    if source.whole:
        spans = taken_sizes(source, lambda inputs: run_original(engine, _arrays(inputs)), spans)
    try:
        infer_shapes(model, measured_at(source, spans))
        shape_bodies(model)
    except Exception as error:
        symbols = " and ".join(source.symbols) or "its inputs"
        raise TraceError(
            f"{source.path} does not run on every size of {symbols}: {summary(error)}. One of "
            f"them may have been fixed inside the graph when it was exported.{_fix(source)}"
        ) from error
    _compare(source, engine, model, spans)
    return model, spans


def measured_at(source: Source, spans: Mapping[str, Span]) -> list[tuple[Sizes, Arrays]]:
    """Runs to measure shapes at: sizes that are no sum, multiple or product of each other."""
    runs: list[tuple[Sizes, Arrays]] = []
    for row in range(RUNS):
        sizes = {}
        for place, (symbol, span) in enumerate(spans.items()):
            more = STEPS[(row * 3 + place * 5) % len(STEPS)] if row else 0
            usual = {BATCH: 2, TIME: 7}.get(symbol, source.sizes[symbol])
            first = source.sizes[symbol] if source.whole else usual
            sizes[symbol] = span.nearest(first + more * span.step)
        runs.append((sizes, _arrays(source.draw(sizes, row))))
    return runs


def _arrays(inputs: Mapping[str, Tensor]) -> Arrays:
    return {name: value.numpy() for name, value in inputs.items()}


def open_original(source: Source) -> onnxruntime.InferenceSession:
    """The file of `source` as ONNX Runtime runs it, with the axes free that the source has free.

    Where the source has other weights than its file, its graph runs in the place of the file.

    Raises:
        TraceError: if it does not.
    """
    if source.reweighted and isinstance(source.body, ir.Model):
        return evaluate.session(source.body)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # As written: what is computed from constants would be computed here, however long it takes.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = source.path
    options.add_session_config_entry(EXTERNAL_FOLDER, str(path.resolve().parent))
    try:
        content = _with_free_axes(source) if source.loosened else str(path)
        return LimitedSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise TraceError(
            f"ONNX Runtime does not run {path}, so nothing can be compared with it: "
            f"{summary(error)}."
        ) from error


def _with_free_axes(source: Source) -> bytes:
    """The graph in the file with the axes of the source free, and no shapes that follow."""
    proto = onnx.load_model(source.path, load_external_data=False)
    del proto.graph.value_info[:]
    for value in proto.graph.input:
        for axis, symbol in source.dynamic.get(value.name, {}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = symbol
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return bytes(proto.SerializeToString())


def run_original(engine: onnxruntime.InferenceSession, inputs: Arrays) -> dict[str, Any]:
    """Outputs of the file by name."""
    names = [output.name for output in engine.get_outputs()]
    return dict(zip(names, engine.run(names, dict(inputs)), strict=True))


def _fix(source: Source) -> str:
    """How to say that an axis has one size, with the names of an input."""
    for name, axes in source.dynamic.items():
        if TIME in axes.values():
            rank = len(source.inputs[name].shape)
            sizes = source.inputs[name].shape
            words = [BATCH if axes.get(i) == BATCH else "512" if i in axes else str(sizes[i])
                     for i in range(rank)]  # fmt: skip
            line = f"--axes {name}:{'x'.join(words)}"
            return f" Where an axis has one size, 512 perhaps, say so: {line}."
    return ""


def _name_nodes(graph: ir.Graph) -> None:
    """Give each node a name of its own."""
    taken: set[str] = set()
    for index, node in enumerate(graph):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)


def _compare(
    source: Source,
    engine: onnxruntime.InferenceSession,
    model: ir.Model,
    spans: Mapping[str, Span],
) -> None:
    try:
        session = evaluate.session(model)
    except Exception as error:
        raise TraceError(
            f"ONNX Runtime refuses {source.path} at opset {model.opset_imports['']}: "
            f"{summary(error)}."
        ) from error
    names = [output.name for output in session.get_outputs()]
    for sizes in several(source, spans) if source.whole else SIZES:
        inputs = _arrays(source.draw(sizes, sum(sizes.values())))
        where = in_words(sizes)
        try:
            wanted = run_original(engine, inputs)
        except Exception as error:
            if sizes == SIZES[-1]:  # a table may end before
                return
            if source.whole and any(s not in source.spans for s in sizes):
                continue
            raise TraceError(
                f"{source.path} itself fails on {where} ({summary(error)}); a step engine has to "
                f"run any number, 1 included. {AS_WHOLE}"
            ) from error
        found = dict(zip(names, session.run(names, inputs), strict=True))
        for name, array in wanted.items():
            wide = np.abs(array.astype(np.float64))
            scale = float(wide[np.isfinite(wide)].max(initial=0))
            if found[name].shape != array.shape or not np.allclose(
                found[name], array, rtol=0, atol=LIMIT * scale, equal_nan=True
            ):
                raise TraceError(
                    f"{source.path}: at opset {model.opset_imports['']} the output {name!r} is "
                    f"something else on {where}, so the graph was not converted rightly."
                )
