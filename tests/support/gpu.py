"""A stand-in for the driver of a GPU, exact about addresses, captures and its own clock.

Device memory is memory of the host that only its own calls may touch.  What is enqueued runs at
once, or is recorded while a stream is captured and runs when the graph is launched, with the
addresses of then.
"""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
ALIGNMENT = 256  # bytes; of what the driver allocates, and of what TensorRT takes


class Driver:
    """What the runtime calls of cuda.bindings.driver.

    Attributes:
        memory: allocations of the device, by address.
        host: pinned ones of the host.
        clock: milliseconds of its own time: each copy takes one.
        launched: how many graphs were launched.
        refuses_capture: fail the end of any capture.
    """

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
    )
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread")
    CUstreamCaptureStatus = SimpleNamespace(CU_STREAM_CAPTURE_STATUS_ACTIVE="active")
    CUevent_record_flags = SimpleNamespace(CU_EVENT_RECORD_DEFAULT=0, CU_EVENT_RECORD_EXTERNAL=1)

    def __init__(self, capability: int = 89) -> None:
        self.capability = capability
        self.memory: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.launched = 0
        self.clock = 0.0
        self.refuses_capture = False
        self._events: dict[int, float | None] = {}
        self._captured: list[Callable[[], None]] | None = None

    # The device

    def cuInit(self, flags: int) -> tuple[int]:  # noqa: N802
        assert flags == 0
        return (0,)

    def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:  # noqa: N802
        assert ordinal == 0
        return 0, 7

    def cuDeviceGetName(self, length: int, device: int) -> tuple[int, bytes]:  # noqa: N802
        assert device == 7
        return 0, b"Stand-in GPU".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, kind: str, device: int) -> tuple[int, int]:  # noqa: N802
        assert device == 7
        return 0, divmod(self.capability, 10)[kind == "minor"]

    def cuDriverGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return 0, 13010

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int, str]:  # noqa: N802
        assert device == 7
        return 0, "context"

    def cuCtxSetCurrent(self, context: str) -> tuple[int]:  # noqa: N802
        assert context == "context"
        return (0,)

    def cuCtxSynchronize(self) -> tuple[int]:  # noqa: N802
        return (0,)

    # Memory

    def cuMemAlloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        return 0, self._allocate(self.memory, size)

    def cuMemFree(self, address: int) -> tuple[int]:  # noqa: N802
        del self.memory[address]
        return (0,)

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[int, int]:  # noqa: N802
        assert flags == 0
        return 0, self._allocate(self.host, size)

    def cuMemFreeHost(self, address: int) -> tuple[int]:  # noqa: N802
        del self.host[address]
        return (0,)

    def cuMemcpyHtoD(self, to: int, source: int, size: int) -> tuple[int]:  # noqa: N802
        self.clock += 1
        self.require(to, size)
        ctypes.memmove(to, source, size)
        return (0,)

    def cuMemcpyDtoH(self, to: int, source: int, size: int) -> tuple[int]:  # noqa: N802
        self.clock += 1
        self.require(source, size)
        ctypes.memmove(to, source, size)
        return (0,)

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: int) -> tuple[int]:  # noqa: N802
        assert source in self.host
        self.enqueue(stream, lambda: self.cuMemcpyHtoD(to, source, size))
        return (0,)

    def cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: int) -> tuple[int]:  # noqa: N802
        assert to in self.host
        self.enqueue(stream, lambda: self.cuMemcpyDtoH(to, source, size))
        return (0,)

    def cuMemcpyDtoDAsync(self, to: int, source: int, size: int, stream: int) -> tuple[int]:  # noqa: N802
        def copy() -> None:
            self.clock += 1
            self.require(to, size)
            self.require(source, size)

        self.enqueue(stream, copy)
        return (0,)

    # Events

    def cuEventCreate(self, flags: int) -> tuple[int, int]:  # noqa: N802
        assert flags == 0
        self._events[event := 100 + len(self._events)] = None
        return 0, event

    def cuEventDestroy(self, event: int) -> tuple[int]:  # noqa: N802
        self._events[event] = None
        return (0,)

    def cuEventRecordWithFlags(self, event: int, stream: int, flags: int) -> tuple[int]:  # noqa: N802
        if flags != (self._captured is not None):
            return (1,)  # one that is recorded within a graph has to say so, and only that one

        def record() -> None:
            self._events[event] = self.clock

        self.enqueue(stream, record)
        return (0,)

    def cuEventElapsedTime(self, start: int, end: int) -> tuple[int, float]:  # noqa: N802
        first, last = self._events[start], self._events[end]
        assert first is not None
        assert last is not None
        return 0, last - first

    # Streams

    def cuStreamCreate(self, flags: int) -> tuple[int, int]:  # noqa: N802
        assert flags == 0
        return 0, 5

    def cuStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        assert stream == 5
        assert self._captured is None, "a stream that is captured cannot be waited for"
        return (0,)

    def cuStreamIsCapturing(self, stream: int) -> tuple[int, str]:  # noqa: N802
        assert stream == 5
        return 0, "none" if self._captured is None else "active"

    def cuStreamBeginCapture(self, stream: int, mode: str) -> tuple[int]:  # noqa: N802
        assert (stream, mode) == (5, "thread")
        self._captured = []
        return (0,)

    def cuStreamEndCapture(self, stream: int) -> tuple[int, Any]:  # noqa: N802
        assert stream == 5
        captured, self._captured = self._captured, None
        return (901 if self.refuses_capture else 0), captured

    def cuGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:  # noqa: N802
        assert flags == 0
        return 0, list(graph)

    def cuGraphDestroy(self, graph: Any) -> tuple[int]:  # noqa: N802
        graph.clear()
        return (0,)

    def cuGraphExecDestroy(self, graph: Any) -> tuple[int]:  # noqa: N802
        graph.clear()
        return (0,)

    def cuGraphLaunch(self, graph: Any, stream: int) -> tuple[int]:  # noqa: N802
        assert stream == 5
        self.launched += 1
        for work in graph:
            work()
        return (0,)

    # What is behind it

    def enqueue(self, stream: int, work: Callable[[], Any]) -> None:
        """Do it now, or when the graph that is captured is launched."""
        assert stream == 5
        if self._captured is None:
            work()
        else:
            self._captured.append(work)

    def require(self, address: int, size: int, among: dict[int, Any] | None = None) -> None:
        """Fail unless these bytes are of one allocation that was not freed, of the device's."""
        assert any(
            start <= address and address + size <= ctypes.addressof(held) + len(held)
            for start, held in (self.memory if among is None else among).items()
        ), "bytes that are not where they should be"

    def view(
        self, address: int, shape: tuple[int, ...], dtype: Any, among: dict[int, Any] | None = None
    ) -> Array:
        """Memory as an array: of the device unless said otherwise."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.require(address, size, among)
        held = (ctypes.c_ubyte * size).from_address(address)
        return np.frombuffer(held, dtype).reshape(shape)

    @staticmethod
    def _allocate(among: dict[int, Any], size: int) -> int:
        held = (ctypes.c_ubyte * (size + ALIGNMENT))()
        ctypes.memset(held, 0xA5, len(held))  # what was never written shows
        address = ctypes.addressof(held) + -ctypes.addressof(held) % ALIGNMENT
        among[address] = held
        return address
