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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from intaglio.errors import BuildError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.trt import flavour as flavours

TARGET = "trt"
GRAPH = "trt/model.onnx"
ENGINE = "trt/engine.plan"
RECORD = "trt/build.json"
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


def build(
    bundle: Bundle,
    out: Path,
    *,
    profiles: Sequence[Profile],
    flavour: str = flavours.AUTO,
    capabilities: Sequence[int] = (),
    modules: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Built:
    """Build the engine of a bundle's `trt/model.onnx` and write it to `out`.

    Args:
        bundle: with the graph, its weights and its kernels; checked against the manifest.
        out: the file of the engine.
        profiles: shapes to tune for.
        flavour: tensorrt, rtx, or auto: full TensorRT where it and a GPU are there.
        capabilities: the GPUs that an engine of TensorRT-RTX is for; none for those that its
            kernels have code for.
        modules: module paths of nodes by their names, for messages.
        progress: is told the phase of the builder and the fraction of it that is done.

    Raises:
        MissingExtraError: if no flavour is installed.
        BuildError: if the importer refuses a node, or the builder finds no implementation.
        BundleError: if a file of the bundle is absent or changed.
    """
    chosen = flavours.choose(flavour)
    for name in (bundle.target(TARGET).path, *bundle.target(TARGET).data):
        bundle.check(name)
    request = {
        "root": str(bundle.root),
        "out": str(out),
        "flavour": chosen,
        "capabilities": list(capabilities),
        "profiles": [asdict(profile) for profile in profiles],
    }
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
        raise BuildError(_refusal(answer["refused"], modules or {}))
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
        where = modules.get(node) or "the model"
        lines.append(f"{where}: {fault['op'] or 'a node'} {node!r}: {fault['said']}")
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
