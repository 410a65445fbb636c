"""Build the engine of a bundle, in a child process: a builder that aborts takes nothing along.

`trt/model.onnx` is parsed into a strongly typed network whose plugins launch the bundle's kernels,
and built with two optimization profiles: one for steps of a token, one for prefill.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from intaglio.errors import BuildError, BundleError, NotHereError, reason
from intaglio.runtime.bundle import BundleGraph
from intaglio.runtime.child_worker import Progress, Worker
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.manifest import FILE_NAME, FileRecord
from intaglio.runtime.plain_files import parse_json
from intaglio.runtime.trt import flavour as flavours
from intaglio.runtime.trt.driver import open_device
from intaglio.runtime.typed import misfit
from intaglio.whole_files import replacing

TARGET = "trt"
# Files of the main graph; those of another one are called alike and lie in a folder of its name.
GRAPH = "trt/model.onnx"
ENGINE = "trt/engine.plan"
REQUEST = "trt/request.json"  # what the engine is to be built for
RECORD = "trt/build.json"  # what was built

Dims = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The shapes of every input that the engine is tuned for: smallest, usual and largest."""

    name: str
    shapes: Mapping[str, tuple[Dims, Dims, Dims]]


@dataclass(frozen=True, kw_only=True)
class Binding:
    """A binding of an engine; -1 stands for what a profile decides."""

    name: str
    dtype: str
    shape: Dims


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """A layer of the network; `plugin` is the operator that our kernels compute, else empty."""

    name: str
    kind: str
    plugin: str


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine and what it is made of."""

    flavour: str
    version: str
    capabilities: tuple[int, ...]
    profiles: tuple[Profile, ...]
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    layers: tuple[EngineLayer, ...]
    bytes: int
    seconds: float

    def spans(self, entry: GraphEntry) -> dict[str, tuple[int, int]]:
        """The least and the largest size of each symbolic dimension of the inputs."""
        found: dict[str, tuple[int, int]] = {}
        for profile in self.profiles:
            for spec in entry.inputs:
                if spec.name not in profile.shapes:
                    continue
                low, _, high = profile.shapes[spec.name]
                for dim, least, most in zip(spec.shape, low, high, strict=True):
                    if isinstance(dim, str):
                        known = found.get(dim, (least, most))
                        found[dim] = min(least, known[0]), max(most, known[1])
        return found

    def capacity(self, entry: GraphEntry) -> int | None:
        """Tokens that caches have room for, None where no state grows.

        A static cache is of one size; another one has a largest.
        """
        most = {n: shapes[2] for each in self.profiles for n, shapes in each.shapes.items()}
        sizes = {tensor.name: tensor.shape for tensor in self.inputs} | most
        axes = {spec.input: spec.axis for spec in entry.states if spec.grows}
        return min((sizes[n][axis] for n, axis in axes.items() if axis is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` wrote, also after it went through JSON."""
        return cls(
            flavour=values["flavour"],
            version=values["version"],
            capabilities=tuple(values["capabilities"]),
            profiles=tuple(_profile(each) for each in values["profiles"]),
            inputs=tuple(_tensor(each) for each in values["inputs"]),
            outputs=tuple(_tensor(each) for each in values["outputs"]),
            layers=tuple(EngineLayer(**each) for each in values["layers"]),
            bytes=values["bytes"],
            seconds=values["seconds"],
        )


def _tensor(values: Mapping[str, Any]) -> Binding:
    return Binding(name=values["name"], dtype=values["dtype"], shape=tuple(values["shape"]))


def _profile(values: Mapping[str, Any]) -> Profile:
    shapes = {}
    for name, (low, usual, high) in values["shapes"].items():
        shapes[name] = (tuple(low), tuple(usual), tuple(high))
    return Profile(name=values["name"], shapes=shapes)


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What an engine is to be built for.

    Attributes:
        profiles: shapes to tune for.
        capabilities: the GPUs that kernels are compiled for, and with TensorRT-RTX the engine.
        flavour: tensorrt, rtx, or auto: full TensorRT where it and a GPU are there.
    """

    profiles: tuple[Profile, ...]
    capabilities: tuple[int, ...]
    flavour: str

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` wrote, also after it went through JSON."""
        return cls(
            profiles=tuple(_profile(each) for each in values["profiles"]),
            capabilities=tuple(values["capabilities"]),
            flavour=values["flavour"],
        )


_Record = TypeVar("_Record", Built, BuildRequest)


def build(
    graph: BundleGraph, *, flavour: str | None = None, progress: Progress | None = None
) -> tuple[BundleGraph, Built]:
    """Build the engine of a graph as its request says, and put it into the bundle.

    The manifest is rewritten last: until then an engine that was there may not be the one it lists,
    which building again mends, and all else is as it was.

    Args:
        graph: of a bundle with weights, kernels and request; all are checked against the manifest.
        flavour: tensorrt, rtx or auto, in place of the request's.
        progress: is told the phase of the builder and the fraction of it that is done.

    Returns:
        The graph of the bundle with the engine, and what the engine is.

    Raises:
        MissingExtraError: if no flavour is installed.
        OptionError: if the flavour asked for cannot build here.
        BuildError: if the importer refuses a node, or the builder finds no implementation.
        NotHereError: if TensorRT-RTX is asked for GPUs that it does not build for, or there are no
            kernels for the GPU that full TensorRT would build for.
        DeviceError: if the driver does not open that GPU.
        BundleError: if the bundle is not for TensorRT, a file of it is absent, changed or cannot
            be written.
    """
    graph.target(TARGET)
    request = _record(graph, REQUEST, BuildRequest)
    chosen = flavours.choose(flavour or request.flavour)
    graph.read(TARGET)  # TensorRT opens any path, so all are hashed and within the bundle
    known = request.capabilities
    usable = flavours.for_rtx(known) if chosen == "rtx" else (_here(graph, known),)
    request = replace(request, capabilities=usable)
    try:
        return _put(graph, replace(request, flavour=chosen), progress)
    except OSError as error:
        engine = graph.root / graph.beside(TARGET, ENGINE)
        raise BundleError(f"{engine} cannot be written: {reason(error)}.") from error


def _here(graph: BundleGraph, capabilities: Sequence[int]) -> int:
    """The compute capability of the GPU, which full TensorRT builds for alone.

    Raises:
        NotHereError: if the bundle has no kernels for it.
        DeviceError: if the driver does not open it.
    """
    device = open_device()
    if device.capability not in capabilities:
        known = ", ".join(map(str, capabilities))
        raise NotHereError(
            f"The kernels of {graph.root} are for compute capability {known}; {device.name} has "
            f"{device.capability}. Export again with --sm {device.capability}"
        )
    return device.capability


def _put(
    graph: BundleGraph, request: BuildRequest, progress: Progress | None
) -> tuple[BundleGraph, Built]:
    bundle = graph.bundle
    engine, record = (graph.beside(TARGET, name) for name in (ENGINE, RECORD))
    with replacing(bundle.root / engine) as draft:
        built = _build(graph, request, draft, progress)
    text = json.dumps(built.to_json(), indent=1)
    with replacing(bundle.root / record) as draft:
        draft.write_text(text + "\n", encoding="utf-8")
    made = {name: FileRecord.of(bundle.root / name) for name in (engine, record)}
    manifest = replace(bundle.manifest, files={**bundle.manifest.files, **made})
    manifest.save(bundle.root / FILE_NAME)
    return replace(graph, bundle=replace(bundle, manifest=manifest)), built


def read_built(graph: BundleGraph) -> Built | None:
    """What the engine of a graph is; None if it has none yet.

    Raises:
        BundleError: if the record is changed.
    """
    if graph.beside(TARGET, RECORD) not in graph.bundle.manifest.files:
        return None
    return _record(graph, RECORD, Built)


def _build(graph: BundleGraph, asked: BuildRequest, out: Path, progress: Progress | None) -> Built:
    with tempfile.TemporaryDirectory() as folder:
        child = Worker(
            "the engine",
            "intaglio.runtime.trt.build_child",
            does="built",
            fault=BuildError,
            relief="build on a machine that has more",
            environment=_environment(asked.flavour, Path(folder)),
        )
        with child:
            return Built.from_json(
                child.call(
                    "build",
                    progress or (lambda _what, _done: None),
                    root=str(graph.root),
                    graph=graph.name,
                    out=str(out),
                    request=asked.to_json(),
                )
            )


def _record(graph: BundleGraph, file: str, kind: type[_Record]) -> _Record:
    """The record that lies as JSON beside the graph.

    Raises:
        BundleError: if it is absent or changed, no JSON, or not what such a record holds.
    """
    bundle, name = graph.bundle, graph.beside(TARGET, file)
    try:
        found = kind.from_json(parse_json(bundle.read(name)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise BundleError(
            f"{bundle.root / name} is not what a build wrote: {said}. Export again."
        ) from error
    wrong = misfit(found, kind) or _contradiction(found, graph.entry)
    if wrong is not None:
        raise BundleError(f"{bundle.root / name}: {wrong}, which no build wrote. Export again.")
    return found


def _contradiction(found: Built | BuildRequest, entry: GraphEntry) -> str | None:
    """What in a record that has the right types does not fit its graph; None if all does."""
    if found.flavour not in (flavours.AUTO, *flavours.FLAVOURS):
        return f"flavour is {found.flavour!r}"
    states = {spec.input: spec.shape for spec in entry.states}
    graph = {**{spec.name: spec.shape for spec in entry.inputs}, **states}
    for profile in found.profiles:
        for name, shapes in profile.shapes.items():
            ranks = {len(shape) for shape in (*shapes, graph.get(name, shapes[0]))}
            if len(ranks) > 1 or min((size for shape in shapes for size in shape), default=0) < 0:
                return f"profiles has the shapes {shapes!r} of {name!r}"
    if isinstance(found, BuildRequest):
        return None
    if not found.profiles or found.flavour == flavours.AUTO:
        return f"profiles has {len(found.profiles)} entries, flavour is {found.flavour!r}"
    bound = {tensor.name: tensor.shape for tensor in found.inputs}
    shaped = {name for profile in found.profiles for name in profile.shapes}
    for name, shape in graph.items():
        if name in bound and len(bound[name]) != len(shape):
            return f"inputs has the shape {bound[name]!r} of {name!r}"
        if name in states and name not in bound.keys() | shaped:
            return f"inputs lacks {name!r}"
    return None


def _environment(flavour: str, folder: Path) -> dict[str, str]:
    """The child's environment.

    When it meets a plugin, the parser of TensorRT-RTX 1.7 opens its library by a name without a
    version, which the wheel does not ship; without it, the process is aborted.
    """
    environment = dict(os.environ)
    if flavour == "rtx":
        libraries = flavours.load_libraries()
        for library in libraries.glob("libtensorrt_rtx.so.*"):
            (folder / "libtensorrt_rtx.so").symlink_to(library)
        path = [str(folder), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(path)
    return environment
