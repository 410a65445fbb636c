"""The TensorRT part of a bundle: kernels compiled for its plugins, and the engine built with them.

The graph `trt/model.onnx` keeps the bodies of its functions, so that ONNX Runtime can run it and
prove the lowering; the builder is given the nodes alone, which its importer makes plugins of.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir

from intaglio.errors import DeviceError, MissingExtraError, NotHereError, OptionError
from intaglio.exporter.options.clock import Clock
from intaglio.exporter.options.recipe import Recipe
from intaglio.exporter.options.served_shapes import ServedShapes
from intaglio.exporter.sources.source import Source
from intaglio.ops import OPS
from intaglio.ops.op import Op
from intaglio.passes.graph import attributes_of, describe, dims
from intaglio.passes.own_ops import input_names
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.dims import size_of
from intaglio.runtime.graph_entry import MAIN
from intaglio.runtime.interpreter import COLUMNS
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.trt import kernels as kernel_files
from intaglio.runtime.trt.engine_build import REQUEST, BuildRequest, Profile, build
from intaglio.runtime.trt.kernels import NodeKernels
from intaglio.state import BATCH, CAPACITY, PAST, TIME, entries_of
from intaglio.trt_plugins import NAMES

from .bundle_writer import BundleWriter
from .compiled import CompiledGraph, prepares
from .graph_files import own_place

# RTX 30, 40 and 50 and A100: what TensorRT-RTX builds for, but the oldest and DGX Spark.
CAPABILITIES = (80, 86, 89, 120)
LONGEST_CACHE = 4096  # entries of a static cache whose model sets no bound
TOKENS = (1, 64, 512)  # of a prefill: least, usual, most
BATCHES = (1, 1, 1)
COLUMNS_AT_ONCE = (1, COLUMNS, COLUMNS)  # rows of a graph that a pass made

UNFINISHED = (
    "The bundle holds graph and kernels for TensorRT, and no engine: {} Finish it on the device "
    "with: intaglio build DIR"
)

Ranges = Mapping[str, tuple[int, int, int]]


def ranges(
    inputs: Sequence[ir.Value],
    shapes: ServedShapes,
    max_context: int | None,
    batch: int | None,
    known_sizes: Ranges | None = None,
) -> Ranges:
    """Least, usual and largest size of each symbolic dimension of a graph's inputs.

    What follows by arithmetic from the sizes of earlier inputs is that of these.  `known_sizes` are
    those that the source was exported for.

    Raises:
        OptionError: if one has no size by default and none was given.
    """
    most = min(max_context or LONGEST_CACHE, LONGEST_CACHE)
    known: dict[str, tuple[int, int, int]] = {
        BATCH: BATCHES if batch is None else (batch,) * 3,
        TIME: (TOKENS[0], min(TOKENS[1], most), min(TOKENS[2], most)),
    }
    known = {**(known_sizes or {}), **known}
    carried = (CAPACITY, PAST)  # known at the end
    for value in inputs:
        given = shapes.ranges.get(str(value.name))
        for axis, dim in enumerate(dims(value) or ()):
            if isinstance(dim, int):
                continue
            if given is not None:
                known[dim] = (given.minimum[axis], given.optimum[axis], given.maximum[axis])
            if dim not in known and (found := _derived(dim, known)) is not None:
                known[dim] = found
            if dim not in known and dim not in carried:
                raise OptionError(
                    f"TensorRT has to know the sizes of {dim!r}, an axis of {value.name!r}: give "
                    f"them with --shapes {value.name}:MIN:OPT:MAX."
                )
    most = max(most, known[TIME][2])  # a cache holds the longest prefill
    return {**known, CAPACITY: (most,) * 3, PAST: (0, most // 2, most)}


def _derived(dim: str, known: Ranges) -> tuple[int, int, int] | None:
    """All three of a dimension that follows from others by arithmetic; None if it does not."""
    found = [size_of(dim, {name: three[i] for name, three in known.items()}) for i in range(3)]
    sizes = sorted(size for size in found if size is not None)
    return (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 else None


def fix_capacity(model: ir.Model, sizes: Ranges) -> None:
    """Give the static caches of a graph their size: TensorRT writes into none of unknown size."""
    capacity = sizes[CAPACITY][0]
    values = [*model.graph.inputs, *model.graph.outputs]
    values += [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in values:
        shape = dims(value)
        if shape is not None and CAPACITY in shape:
            value.shape = ir.Shape([capacity if dim == CAPACITY else dim for dim in shape])


def profiles(graph: ir.Graph, sizes: Ranges, *, whole: bool) -> list[Profile]:
    """One profile for steps of a token and one for prefill, which a whole sequence is alone."""
    step = {**sizes, **{dim: (n, n, n) for dim in sizes if (n := entries_of(dim)) is not None}}
    named = {"prefill": sizes} if whole else {"step": step, "prefill": sizes}
    return [
        Profile(
            name=name,
            shapes={
                str(value.name): (
                    _sized(value, each, 0),
                    _sized(value, each, 1),
                    _sized(value, each, 2),
                )
                for value in graph.inputs
                if any(not isinstance(dim, int) for dim in dims(value) or ())
            },
        )
        for name, each in named.items()
    ]


def _sized(value: ir.Value, sizes: Ranges, which: int) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else sizes[dim][which] for dim in dims(value) or ())


def plugin_ops() -> dict[tuple[str, str], Op]:
    """The operators that plugins compute, by domain and type."""
    return {(op.domain, op.onnx_type): op for op in OPS if op.name in NAMES}


def compile_kernels(
    model: ir.Model, capabilities: Sequence[int], clock: Clock, jobs: int | None = None
) -> tuple[dict[str, NodeKernels], dict[str, str]]:
    """Compile what the plugins of a model launch, in so many processes at most.

    Returns:
        Kernels by a name of their own, and that name for each node; nodes that are alike share.

    Raises:
        UnsupportedError: if there are no kernels for a node; it is named.
        MissingExtraError: if Triton is not installed.
    """
    from intaglio.trt_plugins.ahead import Job, compile_all
    from intaglio.trt_plugins.plugin import Input, Request

    ops = plugin_ops()
    of_name: dict[str, list[Job]] = {}
    names: dict[str, str] = {}
    nodes: dict[str, str] = {}
    for node in model.graph:
        op = ops.get((node.domain, node.op_type))
        if op is None:
            continue
        given = {
            name: Input(
                value.dtype.numpy().name,
                tuple(dim if isinstance(dim, int) else None for dim in dims(value) or ()),
            )
            for name, value in zip(input_names(model, node), node.inputs, strict=False)
            if value is not None and value.dtype is not None
        }
        requests = [
            Request(attributes=attributes_of(node), inputs=given, sm=sm) for sm in capabilities
        ]
        wanted = [Job(plugin=op.name, request=r, where=describe(node)) for r in requests]
        key = json.dumps([job.to_json() for job in wanted], sort_keys=True)
        name = names.setdefault(key, f"{op.name}.{len(names)}")
        of_name.setdefault(name, wanted)
        nodes[str(node.name)] = name
    compiled = compile_all(
        [job for wanted in of_name.values() for job in wanted],
        workers=jobs,
        done=lambda job: clock.report(_words(job), None),
    )
    made = iter(compiled)
    kernels = {
        name: _kernels(wanted, list(islice(made, len(wanted)))) for name, wanted in of_name.items()
    }
    return kernels, nodes


def _words(job: Any) -> str:
    return f"{job.plugin} for compute capability {job.request.sm}"


def _kernels(jobs: Sequence[Any], compiled: Sequence[Any]) -> NodeKernels:
    op = next(op for op in OPS if op.name == jobs[0].plugin)
    made = {job.request.sm: each for job, each in zip(jobs, compiled, strict=True)}
    return NodeKernels(
        op=op.onnx_type,
        plans={sm: each.plan for sm, each in made.items()},
        code={
            f"{sm}/{n}": code.cubin for sm, each in made.items() for n, code in each.code.items()
        },
    )


def write_kernels(
    folder: Path, kernels: Mapping[str, NodeKernels], nodes: Mapping[str, str], place: str
) -> None:
    """Write kernels and the list of the nodes that launch them, at `place`, into a bundle."""
    for name, each in kernels.items():
        for key, code in each.code.items():
            path = folder / kernel_files.file_of(name, key, place)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(code)
    text = json.dumps(kernel_files.index(kernels, nodes, place), indent=1, sort_keys=True)
    (folder / place).write_text(text + "\n", encoding="utf-8")


def requests(compiled: CompiledGraph, source: Source, how: Recipe) -> dict[str, BuildRequest]:
    """Give the graphs for TensorRT the sizes that they need, and say what engines are built for.

    Raises:
        OptionError: if a dimension has no size by default and none was given.
    """
    found = {}
    for name, each in {MAIN: compiled, **compiled.others}.items():
        sizes = _sizes(each, source if name == MAIN else source.others[name], how)
        found[name] = _request(each, sizes, how)
        if each.prepare is not None:
            found[prepares(name)] = _request(each.prepare, sizes, how)
        for other, made in each.beside.items():
            if made.trt is not None:
                own = ranges(made.trt.graph.inputs, ServedShapes.from_json({}), None, None)
                found[other] = _request(made, {**own, BATCH: COLUMNS_AT_ONCE}, how)
    return found


def _request(compiled: CompiledGraph, sizes: Ranges, how: Recipe) -> BuildRequest:
    model = compiled.trt
    assert model is not None
    fix_capacity(model, sizes)
    return BuildRequest(
        profiles=tuple(profiles(model.graph, sizes, whole=not compiled.context.states)),
        capabilities=tuple(how.sm) or CAPABILITIES,
        flavour=how.flavour,
    )


def _sizes(compiled: CompiledGraph, source: Source, how: Recipe) -> Ranges:
    """Sizes of the symbolic dimensions of a graph, and of what prepares it."""
    context = compiled.context
    whole = {
        symbol: (min(span.least, usual), usual, usual if span.most is None else span.most)
        for symbol, span in context.spans.items()
        if (usual := context.trials[0][symbol]) and symbol not in (BATCH, TIME)
    }
    longest = context.max_context
    if TIME in context.spans:
        longest = context.spans[TIME].most
    own = {
        symbol: (span.least, source.sizes.get(symbol, span.least), span.most)
        for symbol, span in source.spans.items()
        if span.most is not None and symbol not in (BATCH, TIME)
    }
    graphs = [each.trt for each in (compiled.prepare, compiled) if each and each.trt]
    inputs = [value for model in graphs for value in model.graph.inputs]
    shapes = ServedShapes.from_json(how.shapes)
    return ranges(inputs, shapes, longest, context.batch, {**own, **whole})


def add_engine(
    writer: BundleWriter,
    manifest: Manifest,
    name: str,
    model: ir.Model,
    request: BuildRequest,
    clock: Clock,
    jobs: int | None = None,
) -> tuple[Manifest, tuple[str, ...]]:
    """Add kernels and engine to a bundle in the making whose graph `name` is `model`.

    Returns:
        The manifest with them, and what the user should know.
    """
    kernels, nodes = compile_kernels(model, request.capabilities, clock, jobs)
    with writer.told():
        write_kernels(writer.path, kernels, nodes, own_place(kernel_files.INDEX, name))
        text = json.dumps(request.to_json(), indent=1, sort_keys=True)
        (writer.path / own_place(REQUEST, name)).write_text(text + "\n", encoding="utf-8")
    manifest = writer.write_manifest(manifest)
    try:
        with writer.told():
            graph, _ = build(Bundle.open(writer.path).graph(name), progress=clock.report)
    except (MissingExtraError, NotHereError, DeviceError) as error:
        return manifest, (UNFINISHED.format(error),)
    return graph.bundle.manifest, ()
