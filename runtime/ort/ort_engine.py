"""ONNX Runtime sessions, opened from bundles and shared: weights are in memory once a process."""

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import onnxruntime

from intaglio.errors import BundleError
from intaglio.runtime.backend import check_names
from intaglio.runtime.bundle import BundleGraph
from intaglio.state import BATCH

from .lookup_tables import OPTION

_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
# Threads that wait sleep.  Spinning, they take a core from whatever runs meanwhile, be it another
# graph, another bundle or another program, and a step then takes several times as long: each of its
# products ends when the last thread does, and that one may not be running at all.  Where nothing
# else runs, spinning saves microseconds a product (benchmarks/engines_together.py has both).  A
# pool that all engines share would not keep other programs out, and with one ONNX Runtime refuses
# every session of the process that has threads of its own, the user's among them.
_SPINNING = "session.intra_op.allow_spinning"
OPTIMIZED = ".onnx"
WEIGHTS = "weights"
_OPTIMIZED_WEIGHTS = "session.optimized_model_external_initializers_file_name"
_SILENT = 4  # what goes wrong is raised, so ONNX Runtime need not log it

# Dtypes by the names that ONNX Runtime gives them, where they differ from numpy's.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{
        f"tensor({name})": name
        for name in (
            *("bool", "float16", "bfloat16", "int8", "int16", "int32", "int64"),
            *("uint8", "uint16", "uint32", "uint64"),
        )
    },
}

Mark = tuple[int, ...]  # of a file: device, number, size, times

_opened: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()
_mapped: WeakKeyDictionary[Any, Mapping[Path, Mark | None]] = WeakKeyDictionary()
_lock = threading.Lock()


def open_engine(
    graph: BundleGraph,
    target: str,
    threads: int | None,
    trace: str | None = None,
    *,
    tables: bool = False,
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> Any:
    """An `onnxruntime.InferenceSession` of `target`, the same one while any holder is alive.

    Which one is told by what was hashed now, not by what a manifest says: each bundle is read.  One
    whose files were written to since it mapped them is left to those that hold it.

    Args:
        graph: of a bundle, where it and its weights lie; their sizes and hashes are checked.
        target: name of an entry of its targets.
        threads: threads for the work inside one operator; None leaves it to ONNX Runtime.
        trace: how the names of files start to which a new engine writes the time of each node,
            once its `end_profiling` is called, and at once the graph that it made of the bundle's,
            with its weights in `WEIGHTS` beside it; None for no such files.
        tables: whether products of 2 bits are looked up, see `lookup_tables`.
        sizes: free dimensions that are fixed, by name.

    Raises:
        BundleError: if a file is absent or changed, or ONNX Runtime refuses the graph.
    """
    content = graph.read(target)
    own = "" if graph.bundle.copy is None else str(graph.bundle.root)
    key = (content.fingerprint, threads, tables, tuple(sorted(sizes.items())), own)
    marks = {path: _mark(path) for path in (graph.root / name for name in content.files)}
    with _lock:
        engine = _opened.get(key)
        if engine is None or any(_mark(path) != mark for path, mark in _mapped[engine].items()):
            engine = _opened[key] = _open(
                graph, target, content.graph, threads, trace, tables=tables, sizes=sizes
            )
            _mapped[engine] = marks
    path = graph.target(target).path
    check_names(graph, path, _names(engine.get_inputs()), _names(engine.get_outputs()))
    _check_values(graph, target, engine)
    return engine


def _mark(path: Path) -> Mark | None:
    """What changes when a file is written to or exchanged; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _open(
    graph: BundleGraph,
    target: str,
    content: bytes,
    threads: int | None,
    trace: str | None,
    *,
    tables: bool,
    sizes: Mapping[str, int],
) -> Any:
    bundle, entry = graph.bundle, graph.target(target)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(bundle.root))
    options.add_session_config_entry(_SPINNING, "0")
    if tables:
        options.add_session_config_entry(OPTION, "1")
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    if threads is not None:
        options.intra_op_num_threads = threads
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = trace
        options.optimized_model_filepath = f"{trace}{OPTIMIZED}"
        options.add_session_config_entry(_OPTIMIZED_WEIGHTS, WEIGHTS)
    try:
        return onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} refuses {bundle.root / entry.path}: {error}"
        ) from error


def _check_values(graph: BundleGraph, target: str, engine: Any) -> None:
    """Refuse a graph whose types or fixed sizes are not those of its manifest."""
    entry, states = graph.entry, graph.entry.states_of(target)
    path = graph.root / graph.target(target).path
    described = {
        **{spec.name: (spec.dtype, spec.shape) for spec in (*entry.inputs, *entry.outputs)},
        **{spec.input: (spec.dtype, spec.shape) for spec in states},
        **{spec.output: (spec.dtype, spec.shape) for spec in states if spec.output},
    }
    for value in (*engine.get_inputs(), *engine.get_outputs()):
        dtype, shape = described.get(value.name, ("int64", (BATCH,)))
        found = _DTYPES.get(value.type, value.type)
        fits = len(shape) == len(value.shape) and all(
            a == b or isinstance(a, str) or not isinstance(b, int)
            for a, b in zip(shape, value.shape, strict=True)
        )
        if found != dtype or not fits:
            raise BundleError(
                f"{path} has {value.name!r} as {found} {value.shape}, but the "
                f"manifest says {dtype} {list(shape)}. Export the bundle again."
            )


def _names(values: Iterable[Any]) -> set[str]:
    return {value.name for value in values}
