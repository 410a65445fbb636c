"""TensorRT engines of bundles, opened once a process, and what a session runs of one."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakValueDictionary

from intaglio.errors import (
    BundleError,
    DeviceError,
    InputError,
    IntaglioError,
    MissingExtraError,
)
from intaglio.runtime.backend import check_names
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.carried import Carried
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.shapes import Sizes
from intaglio.state import BATCH, TIME, Layout, StateSpec

from . import driver, plugin
from . import flavour as flavours
from . import kernels as kernel_files
from .buffers import KINDS, DeviceBuffer
from .build import ENGINE, TARGET, Built, Profile, read_built
from .driver import Memory
from .jit import Jit
from .log import logger
from .plan import TrtPlan

if TYPE_CHECKING:
    from .trace import TrtTracer

Shapes = Mapping[str, tuple[int, ...]]

_opened: WeakValueDictionary[str, "Engine"] = WeakValueDictionary()
_registered: dict[tuple[str, str], Any] = {}  # creators of plugins, by flavour and operator
_lock = threading.Lock()


class Engine:
    """A deserialized engine, shared by the sessions of a bundle.

    Attributes:
        device: where its weights lie.
        built: what it was built for.
        trt: the module of its flavour.
        log: the logger that TensorRT complains to.
        cuda_engine: TensorRT's object.
        jit: what compiles kernels on the device, where the flavour does.
    """

    def __init__(self, bundle: Bundle, built: Built) -> None:
        """Check that it can run here, and load it.

        Raises:
            BundleError: if a file of the bundle is absent or changed.
            MissingExtraError: if the engine's library is not installed.
            DeviceError: if the engine is for another GPU or another library.
        """
        for fault in faults(bundle, built):
            raise fault
        self.built = built
        self.trt = flavours.load(built.flavour)
        self.device = driver.open_device()
        self.log = logger(self.trt)
        _register(self.trt, built.flavour, kernel_files.operators(bundle))
        self.runtime = self.trt.Runtime(self.log)
        self.cuda_engine = self.runtime.deserialize_cuda_engine(bundle.read(ENGINE))
        if self.cuda_engine is None:
            raise DeviceError(
                f"{bundle.root / ENGINE} does not load: {self.log.complaint()}. {_again(bundle)}"
            )
        mode = self.trt.TensorIOMode
        names = [
            self.cuda_engine.get_tensor_name(i) for i in range(self.cuda_engine.num_io_tensors)
        ]
        modes = {name: self.cuda_engine.get_tensor_mode(name) for name in names}
        takes, gives = (
            {name for name in names if modes[name] == each} for each in (mode.INPUT, mode.OUTPUT)
        )
        check_names(bundle, ENGINE, takes, gives)
        digest = bundle.manifest.files[ENGINE].sha256
        self.jit = Jit(self, digest) if built.flavour == "rtx" else None

    def context(self) -> Any:
        """A new execution context, whose memory the caller brings; None if TensorRT gives none."""
        if self.jit is not None:
            return self.cuda_engine.create_execution_context(self.jit.config)
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self.cuda_engine.create_execution_context(strategy)


class TrtBackend:
    """States in the memory of a GPU, and steps of an engine on a stream of its own.

    Attributes:
        most_tokens: of a row that a step takes.
        most_rows: that a step takes.
        capacity: tokens that its caches have room for, None where no state grows.
        device: the GPU.
        stream: where the steps of this session run, one after the other.
        engine: what they run.
        tracer: is told of every context and every run of it, where the session is traced.
    """

    tracer: "TrtTracer | None" = None

    def __init__(self, engine: Engine, manifest: Manifest) -> None:
        self.engine = engine
        self._manifest = manifest
        self.device = engine.device
        self.device.use()
        self.stream = self.device.stream()
        self.most_tokens = engine.built.most(manifest, TIME)
        self.most_rows = engine.built.most(manifest, BATCH)
        self.capacity = engine.built.capacity(manifest)
        # All contexts of a session share it: their steps never run at the same time.
        self._scratch = Memory(self.device, engine.cuda_engine.device_memory_size_v2)

    def buffer(self, spec: StateSpec, batch: int, tokens: int) -> DeviceBuffer:
        """Memory for a state in its initial value, of the size that the engine has it."""
        self.device.use()
        return KINDS[spec.layout](self.device, spec, batch, self.capacity or tokens)

    def plan(self, sizes: Sizes, carried: Carried) -> TrtPlan:
        """A step of inputs of these sizes, bound to the memory of `carried`."""
        self.device.use()
        return TrtPlan(self, self._manifest, sizes, carried)

    def fork(self) -> Self:
        """A backend for another session of the same engine."""
        return type(self)(self.engine, self._manifest)

    def context(self, shapes: Shapes) -> Any:
        """An execution context in the first profile that takes inputs of these shapes.

        Raises:
            InputError: if none does.
        """
        engine, built = self.engine, self.engine.built
        growing = {s.input: s.axis for s in self._manifest.states if s.layout is Layout.GROW}
        index = next((i for i, p in enumerate(built.profiles) if _fits(p, shapes, growing)), None)
        if index is None:
            raise InputError(_misfit(built.profiles, shapes, growing))
        context = engine.context()
        if context is None:
            raise DeviceError(f"TensorRT gives no execution context: {self.complaint()}.")
        context.set_device_memory(self._scratch.address, self._scratch.nbytes)
        if not context.set_optimization_profile_async(index, self.stream):
            raise DeviceError(f"TensorRT refuses its own profile: {self.complaint()}.")
        self.device.wait(self.stream)
        if self.tracer is not None:
            self.tracer.watch(context)
        return context

    def settled(self) -> None:
        """Take note that a step ran at new shapes: what it compiled is kept."""
        if self.engine.jit is not None:
            self.engine.jit.keep()

    def reads_on_host(self, name: str) -> bool:
        """Whether TensorRT reads an input on the host, since shapes within the engine follow."""
        host = self.engine.trt.TensorLocation.HOST
        return bool(self.engine.cuda_engine.get_tensor_location(name) == host)

    def complaint(self) -> str:
        """What TensorRT said last."""
        return str(self.engine.log.complaint())


def open_backend(bundle: Bundle) -> TrtBackend:
    """What runs the engine of a bundle, which is loaded once while any session is alive.

    Raises:
        BundleError: if there is no engine yet, or a file is absent or changed.
        MissingExtraError: if the engine's library is not installed.
        DeviceError: if the engine is for another GPU or another library, or there is no GPU.
    """
    bundle.target(TARGET)
    built = read_built(bundle)
    if built is None:
        raise BundleError(
            f"{bundle.root} has graph and kernels for TensorRT, and no engine yet. {_again(bundle)}"
        )
    key = bundle.manifest.files[ENGINE].sha256
    with _lock:
        engine = _opened.get(key)
        if engine is None:
            engine = _opened[key] = Engine(bundle, built)
    return TrtBackend(engine, bundle.manifest)


def faults(bundle: Bundle, built: Built) -> Iterator[IntaglioError]:
    """What keeps the engine of a bundle from running here, one error for each.

    Args:
        bundle: with the engine.
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
            f"The engine of {bundle.root} was built by {package} {built.version}, and {found} is "
            f"installed: an engine runs in the version that built it. {_again(bundle)}"
        )
    try:
        device = driver.open_device()
    except IntaglioError as error:
        yield error
        return
    here = device.capability
    if here not in built.capabilities:
        yield DeviceError(
            f"The engine of {bundle.root} is for compute capability {_list(built.capabilities)}; "
            f"{device.name} has {here}. Export again with --sm {here}."
        )
    # A plugin that finds no kernels once it runs could only end the process.
    for op, capabilities in kernel_files.operators(bundle).items():
        if here in built.capabilities and here not in capabilities:
            yield DeviceError(
                f"The kernels of {op} in {bundle.root} are for compute capability "
                f"{_list(capabilities)}; {device.name} has {here}. Export again with --sm {here}."
            )


def _list(capabilities: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(capabilities)))


def _again(bundle: Bundle) -> str:
    return f"Build it on this device with: intaglio build {bundle.root}"


def _register(trt: Any, flavour: str, ops: Iterable[str]) -> None:
    """Register what makes plugins of serialized ones, once a process."""
    missing = [op for op in ops if (flavour, op) not in _registered]
    for op, creator in zip(missing, plugin.register(trt, {}, missing), strict=True):
        _registered[flavour, op] = creator


def _fits(profile: Profile, shapes: Shapes, growing: Mapping[str, int | None]) -> bool:
    return next(_beyond(profile, shapes, growing), None) is None


def _beyond(
    profile: Profile, shapes: Shapes, growing: Mapping[str, int | None]
) -> Iterator[tuple[str, int]]:
    """Inputs and axes at which shapes leave a profile; a growing axis changes with each step."""
    for name, (least, _, most) in profile.shapes.items():
        for axis, size in enumerate(shapes[name]):
            if growing.get(name) != axis and not least[axis] <= size <= most[axis]:
                yield name, axis


def _misfit(
    profiles: tuple[Profile, ...], shapes: Shapes, growing: Mapping[str, int | None]
) -> str:
    """Say which input is of a size that no profile has."""
    wide = profiles[-1]
    name, axis = next(iter(_beyond(wide, shapes, growing)))
    least, _, most = wide.shapes[name]
    return (
        f"{name!r} has the shape {list(shapes[name])}; the engine was built for {least[axis]} to "
        f"{most[axis]} along axis {axis}. Export with --shapes {name}:MIN:OPT:MAX that span it."
    )
