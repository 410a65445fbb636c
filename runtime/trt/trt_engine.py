"""TensorRT engines of bundles, opened once a process, and what keeps one from running here."""

import threading
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakValueDictionary

from intaglio.errors import BundleError, DeviceError, IntaglioError, MissingExtraError
from intaglio.runtime.backend import check_names
from intaglio.runtime.bundle import BundleGraph

from . import driver, generic_plugin
from . import flavour as flavours
from . import kernels as kernel_files
from .engine_build import ENGINE, TARGET, Built, read_built
from .jit import Jit
from .log import logger

_opened: WeakValueDictionary[str, "TrtEngine"] = WeakValueDictionary()
_registered: dict[tuple[str, str], Any] = {}  # creators of plugins, by flavour and operator
_lock = threading.Lock()


class TrtEngine:
    """A deserialized engine, shared by the sessions of a bundle.

    Attributes:
        device: where its weights lie.
        built: what it was built for.
        trt: the module of its flavour.
        log: the logger that TensorRT complains to.
        cuda_engine: TensorRT's object.
        jit: what compiles kernels on the device, where the flavour does.
    """

    def __init__(self, graph: BundleGraph, built: Built) -> None:
        """Check that it can run here, and load it.

        Raises:
            BundleError: if a file of the bundle is absent or changed.
            MissingExtraError: if the engine's library is not installed.
            DeviceError: if the engine is for another GPU or another library.
        """
        path = graph.beside(TARGET, ENGINE)
        for fault in faults(graph, built):
            raise fault
        self.built = built
        self.trt = flavours.load(built.flavour)
        self.device = driver.open_device()
        self.log = logger(self.trt)
        _register(self.trt, built.flavour, kernel_files.operators(graph))
        self.runtime = self.trt.Runtime(self.log)
        self.cuda_engine = self.runtime.deserialize_cuda_engine(graph.bundle.read(path))
        if self.cuda_engine is None:
            raise DeviceError(
                f"{graph.root / path} does not load: {self.log.complaint()}. {_again(graph)}"
            )
        mode = self.trt.TensorIOMode
        names = [
            self.cuda_engine.get_tensor_name(i) for i in range(self.cuda_engine.num_io_tensors)
        ]
        modes = {name: self.cuda_engine.get_tensor_mode(name) for name in names}
        takes, gives = (
            {name for name in names if modes[name] == each} for each in (mode.INPUT, mode.OUTPUT)
        )
        check_names(graph, path, takes, gives)
        digest = graph.bundle.record(path).sha256
        self.jit = (
            Jit(self.trt, self.cuda_engine, self.device, digest) if built.flavour == "rtx" else None
        )

    def context(self) -> Any:
        """A new execution context, whose memory the caller brings; None if TensorRT gives none."""
        if self.jit is not None:
            return self.cuda_engine.create_execution_context(self.jit.config)
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self.cuda_engine.create_execution_context(strategy)


def open_engine(graph: BundleGraph) -> TrtEngine:
    """The engine of a graph, which is loaded once while any holder is alive.

    Raises:
        BundleError: if there is no engine yet, or a file is absent or changed.
        MissingExtraError: if the engine's library is not installed.
        DeviceError: if the engine is for another GPU or another library, or there is no GPU.
    """
    built = read_built(graph)
    if built is None:
        raise BundleError(
            f"{graph.root} has graph and kernels for TensorRT, and no engine yet. {_again(graph)}"
        )
    key = graph.bundle.record(graph.beside(TARGET, ENGINE)).sha256
    with _lock:
        engine = _opened.get(key)
        if engine is None:
            engine = _opened[key] = TrtEngine(graph, built)
        return engine


def faults(graph: BundleGraph, built: Built) -> Iterator[IntaglioError]:
    """What keeps the engine of a graph from running here, one error for each.

    Args:
        graph: with the engine.
        built: what it was built for.

    Raises:
        BundleError: if the index of its kernels is absent or changed.
    """
    package = flavours.FLAVOURS[built.flavour]
    found = flavours.installed(built.flavour)
    if found is None:
        yield MissingExtraError(f"running an engine of {package} {built.version}", "trt")
    elif found != built.version:
        yield DeviceError(
            f"The engine of {graph.root} was built by {package} {built.version}, and {found} is "
            f"installed: an engine runs in the version that built it. {_again(graph)}"
        )
    try:
        device = driver.open_device()
    except IntaglioError as error:
        yield error
        return
    here = device.capability
    if here not in built.capabilities:
        yield DeviceError(
            f"The engine of {graph.root} is for compute capability {_list(built.capabilities)}; "
            f"{device.name} has {here}. Export again with --sm {here}"
        )
    # A plugin that finds no kernels once it runs could only end the process.
    for op, capabilities in kernel_files.operators(graph).items():
        if here in built.capabilities and here not in capabilities:
            yield DeviceError(
                f"The kernels of {op} in {graph.root} are for compute capability "
                f"{_list(capabilities)}; {device.name} has {here}. Export again with --sm {here}"
            )


def _list(capabilities: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(capabilities)))


def _again(graph: BundleGraph) -> str:
    return f"Build it on this device with: intaglio build {graph.root}"


def _register(trt: Any, flavour: str, ops: Iterable[str]) -> None:
    """Register what makes plugins of serialized ones, once a process."""
    missing = [op for op in ops if (flavour, op) not in _registered]
    for op, creator in zip(missing, generic_plugin.register(trt, {}, missing), strict=True):
        _registered[flavour, op] = creator
