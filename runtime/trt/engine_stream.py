"""An engine on a stream of one session: execution contexts that share scratch memory."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from intaglio.errors import DeviceError, InputError
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.state import Layout

from .driver import DeviceMemory
from .engine_build import Profile
from .trt_engine import TrtEngine

Shapes = Mapping[str, tuple[int, ...]]


class ContextTracer(Protocol):
    """Is told of every execution context of a session that is traced, and of every run of it."""

    def watch(self, context: Any) -> None:
        """Have the runs of an execution context timed, layer by layer."""

    def timed(self) -> AbstractContextManager[None]:
        """Time what is enqueued meanwhile, as a whole."""

    def take(self, context: Any) -> None:
        """Take the times of the run of `context` that has just ended."""


class EngineStream:
    """Runs an engine for one session: one step after the other.

    Attributes:
        engine: what runs.
        device: the GPU.
        stream: where the steps of this session run.
        tracer: where the session is traced.
    """

    tracer: ContextTracer | None = None

    def __init__(self, engine: TrtEngine, entry: GraphEntry) -> None:
        self.engine = engine
        self.device = engine.device
        self.device.use()
        self.stream = self.device.stream()
        self._growing = {s.input: s.axis for s in entry.states if s.layout is Layout.GROW}
        # All contexts of a session share it: their steps never run at the same time.
        self._scratch = DeviceMemory(self.device, engine.cuda_engine.device_memory_size_v2)

    def context(self, shapes: Shapes) -> Any:
        """An execution context in the first profile that takes inputs of these shapes.

        Raises:
            InputError: if none does.
        """
        engine, built = self.engine, self.engine.built
        growing = self._growing
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
