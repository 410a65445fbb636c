"""Build the engine of a bundle, in a child process: a builder that aborts takes nothing along.

`trt/model.onnx` is parsed into a strongly typed network whose plugins launch the bundle's kernels,
and built with two optimization profiles: one for steps of a token, one for prefill.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from intaglio.errors import BuildError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.graph import read_graph
from intaglio.runtime.manifest import FILE_NAME, FileRecord
from intaglio.runtime.trt import flavour as flavours

TARGET = "trt"
GRAPH = "trt/model.onnx"
ENGINE = "trt/engine.plan"
REQUEST = "trt/request.json"  # what the engine is to be built for
RECORD = "trt/build.json"  # what was built
_ANSWER = "built"

Progress = Callable[[str, float | None], None]
Dims = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The shapes of every input that the engine is tuned for: smallest, usual and largest."""

    name: str
    shapes: Mapping[str, tuple[Dims, Dims, Dims]]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A binding of an engine; -1 stands for what a profile decides."""

    name: str
    dtype: str
    shape: Dims


@dataclass(frozen=True, kw_only=True)
class Layer:
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
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[Layer, ...]
    bytes: int
    seconds: float

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
            layers=tuple(Layer(**each) for each in values["layers"]),
            bytes=values["bytes"],
            seconds=values["seconds"],
        )


def _tensor(values: Mapping[str, Any]) -> Tensor:
    return Tensor(name=values["name"], dtype=values["dtype"], shape=tuple(values["shape"]))


def _profile(values: Mapping[str, Any]) -> Profile:
    shapes = {}
    for name, (low, usual, high) in values["shapes"].items():
        shapes[name] = (tuple(low), tuple(usual), tuple(high))
    return Profile(name=values["name"], shapes=shapes)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an engine is to be built for.

    Attributes:
        profiles: shapes to tune for.
        capabilities: the GPUs that an engine of TensorRT-RTX is for; none for those that its
            kernels have code for.
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


def build(
    bundle: Bundle, *, flavour: str | None = None, progress: Progress | None = None
) -> tuple[Bundle, Built]:
    """Build the engine of a bundle as its request says, and put it into the bundle.

    The manifest is rewritten last: until then the bundle is as it was.

    Args:
        bundle: with graph, weights, kernels and request; all are checked against the manifest.
        flavour: tensorrt, rtx or auto, in place of the request's.
        progress: is told the phase of the builder and the fraction of it that is done.

    Returns:
        The bundle with the engine, and what the engine is.

    Raises:
        MissingExtraError: if no flavour is installed.
        OptionError: if the flavour asked for cannot build here.
        BuildError: if the importer refuses a node, or the builder finds no implementation.
        BundleError: if the bundle is not for TensorRT, or a file of it is absent or changed.
    """
    target = bundle.target(TARGET)
    request = Request.from_json(json.loads(bundle.read(REQUEST)))
    chosen = flavours.choose(flavour or request.flavour)
    for name in target.data:
        bundle.check(name)
    draft = bundle.root / f"{ENGINE}.{os.getpid()}"
    try:
        built = _build(bundle, replace(request, flavour=chosen), draft, progress)
        draft.replace(bundle.root / ENGINE)
    finally:
        draft.unlink(missing_ok=True)
    text = json.dumps(built.to_json(), indent=1)
    (bundle.root / RECORD).write_text(text + "\n", encoding="utf-8")
    made = {name: FileRecord.of(bundle.root / name) for name in (ENGINE, RECORD)}
    manifest = replace(bundle.manifest, files={**bundle.manifest.files, **made})
    manifest.save(bundle.root / FILE_NAME)
    return replace(bundle, manifest=manifest), built


def read_built(bundle: Bundle) -> Built | None:
    """What a bundle's engine is; None if it has none yet.

    Raises:
        BundleError: if the record is changed.
    """
    if RECORD not in bundle.manifest.files:
        return None
    return Built.from_json(json.loads(bundle.read(RECORD)))


def _build(bundle: Bundle, asked: Request, out: Path, progress: Progress | None) -> Built:
    request = {"root": str(bundle.root), "out": str(out), **asked.to_json()}
    chosen = asked.flavour
    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(chosen, Path(folder))
        command = [sys.executable, "-P", "-m", "intaglio.runtime.trt.build_child"]
        with subprocess.Popen(  # noqa: S603  our own module
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            answer, said = _converse(child, request, progress)
    if answer is None:
        last = said.strip().splitlines()[-1:] or ["nothing"]
        raise BuildError(
            f"The builder of {chosen} ended with {child.returncode} and no engine. "
            f"It last said: {last[0]}"
        )
    if "refused" in answer:
        modules = {node.name: node.module for node in read_graph(bundle, TARGET).nodes}
        raise BuildError(_refusal(answer["refused"], modules))
    return Built.from_json(answer[_ANSWER])


def _converse(
    child: "subprocess.Popen[str]", request: Mapping[str, Any], progress: Progress | None
) -> tuple[dict[str, Any] | None, str]:
    """The child's answer, None if it ended without, and what it wrote on stderr."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdin.write(json.dumps(request))
    child.stdin.close()
    answer = None
    for line in child.stdout:
        message = json.loads(line)
        if "progress" not in message:
            answer = message
        elif progress is not None:
            progress(*message["progress"])
    return answer, child.stderr.read()


def _refusal(faults: Sequence[Mapping[str, str]], modules: Mapping[str, str]) -> str:
    lines = []
    for fault in faults:
        node = fault["node"]
        if not node:
            lines.append(fault["said"])
            continue
        where = modules.get(node) or "the model"
        lines.append(f"{where}: {fault['op']} {node!r}: {fault['said']}")
    return "TensorRT refuses the graph. " + " ".join(lines)


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
