"""What this installation can do: packages against the ranges intaglio asks for, and engines.

Nothing of an extra is imported, so that it works where something is missing or broken.
"""

import importlib
import importlib.metadata
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intaglio.errors import IntaglioError
from intaglio.runtime.trt.flavour import has_device
from intaglio.version import __version__

if TYPE_CHECKING:
    from intaglio.runtime.bundle import BundleGraph

_REQUIREMENT = re.compile(  # name, extras of its own, least version, extra of ours
    r"""([\w.-]+)(?:\[[\w,-]+\])?(?:>=([\w.]+))?(?:.*extra == ["']([\w-]+)["'])?"""
)

# What intaglio does without any extra, and with which.
ABILITIES: dict[str, tuple[str, ...]] = {
    "run": (),
    "run_text": ("text",),
    "export": ("export",),
    "export_huggingface": ("export", "text", "hf"),
    "export_graphsurgeon_passes": ("export", "graphsurgeon"),
    "export_tensorrt": ("export", "trt"),
    "profile_page": ("report",),
    "search_on_ray": ("export", "ray"),
    "sign": ("sign",),
    "ask_triton_server": ("triton-server",),
    "bench": ("export", "text", "hf", "report", "bench"),
}
EXTRAS = frozenset(extra for extras in ABILITIES.values() for extra in extras)


@dataclass(frozen=True)
class Package:
    """A package that intaglio asks for: at least `minimum`; `extra` is empty for what it needs."""

    name: str
    extra: str
    minimum: str
    installed: str | None

    @property
    def ok(self) -> bool:
        """Whether it is installed, and new enough."""
        return self.installed is not None and _numbers(self.installed) >= _numbers(self.minimum)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What can be done here, and what each ability lacks."""

    packages: tuple[Package, ...]
    providers: tuple[str, ...]
    engine_error: str | None
    flavours: Mapping[str, str | None]
    device: dict[str, str] | None

    def lacks(self, *extras: str) -> list[str]:
        """What is missing or too old for some extras, as pip would be asked for it."""
        needed = [entry for entry in self.packages if entry.extra in ("", *extras)]
        return [f"{entry.name}>={entry.minimum}" for entry in needed if not entry.ok]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "intaglio": __version__,
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "packages": [{**asdict(entry), "ok": entry.ok} for entry in self.packages],
            "targets": {
                "ort": {"providers": list(self.providers), "error": self.engine_error},
                "trt": {
                    "flavours": dict(self.flavours),
                    "device": self.device,
                },
            },
            "can": {
                ability: {"ok": not self.lacks(*extras), "missing": self.lacks(*extras)}
                for ability, extras in ABILITIES.items()
            },
        }


def diagnose() -> Diagnosis:
    """Look at this Python environment."""
    providers: tuple[str, ...] = ()
    fault: str | None = None
    try:
        engine = importlib.import_module("onnxruntime")
    except ImportError as error:
        fault = str(error)
    else:
        providers = tuple(engine.get_available_providers())
    return Diagnosis(
        packages=tuple(_packages()),
        providers=providers,
        engine_error=fault,
        flavours={
            "tensorrt": _installed("tensorrt"),
            "rtx": _installed("tensorrt-rtx"),
        },
        device=_device(),
    )


def examine(path: Path) -> dict[str, list[str]]:
    """What keeps each target of a bundle from running here; nothing where it runs.

    A target of another graph than main is called by both names.

    Raises:
        BundleError: if there is no bundle at `path`, or it is broken.
    """
    from intaglio.runtime.bundle import Bundle
    from intaglio.runtime.graph_entry import MAIN

    bundle = Bundle.open(path)
    return {
        target if name == MAIN else f"{name}: {target}": [*_faults(graph, target)]
        for name, graph in bundle.graphs.items()
        for target in graph.entry.targets
    }


def _faults(graph: "BundleGraph", target: str) -> Iterator[str]:
    from intaglio.runtime.session import Session
    from intaglio.runtime.trt.engine_build import TARGET, read_built
    from intaglio.runtime.trt.trt_engine import faults

    if target == TARGET and (built := read_built(graph)) is not None:
        yield from map(str, faults(graph, built))
        return
    try:
        Session.load(graph.bundle, target, graph=graph.name)
    except IntaglioError as error:
        yield str(error)


def _device() -> dict[str, str] | None:
    if not has_device():
        return None
    from intaglio.runtime.trt.driver import open_device

    try:
        device = open_device()
    except IntaglioError as error:
        return {"error": str(error)}
    capability = ".".join(map(str, divmod(device.capability, 10)))
    return {"name": device.name, "capability": capability, "cuda": device.cuda}


def extra_of(package: str) -> str | None:
    """The extra that brings the import package `package`, None if no extra does."""
    names = {entry.name.replace("-", "_"): entry.extra for entry in _packages()}
    return names.get(package) or None


def _packages() -> Iterator[Package]:
    for line in importlib.metadata.requires("intaglio") or []:
        match = _REQUIREMENT.match(line)
        if match is None or match[1] == "intaglio" or (match[3] or "") not in ("", *EXTRAS):
            continue
        yield Package(match[1], match[3] or "", match[2] or "0", _installed(match[1]))


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
