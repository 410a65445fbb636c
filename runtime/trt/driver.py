"""The CUDA driver, as far as running an engine takes: a GPU, memory on it, streams and graphs."""

import importlib
import math
import weakref
from collections.abc import Sequence
from ctypes import c_ubyte
from functools import cache
from typing import Any

import numpy as np

from intaglio.errors import DeviceError, MissingExtraError
from intaglio.runtime.arrays import Array

from .flavour import has_device

ALIGNMENT = 256  # bytes; of every tensor on the device, as kernels are compiled for


def aligned(size: int) -> int:
    """Bytes of a tensor with what keeps the next one aligned."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def call(function: Any, *arguments: Any) -> Any:
    """What a function of the driver gives, after its status.

    Raises:
        DeviceError: if the driver refuses.
    """
    status, *values = function(*arguments)
    if int(status):
        raise DeviceError(f"The CUDA driver's {function.__name__} failed: {status}.")
    return values[0] if values else None


def capability(api: Any, device: Any) -> int:
    """The compute capability of a device: 89 for 8.9."""
    kinds = api.CUdevice_attribute
    major, minor = (
        call(api.cuDeviceGetAttribute, kind, device)
        for kind in (
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return int(major) * 10 + int(minor)


class DeviceMemory:
    """DeviceMemory on the device, freed when nobody holds it.

    Attributes:
        address: where it starts.
        nbytes: how long it is, at least 1: TensorRT takes no null address for an empty tensor.
    """

    def __init__(self, device: "Device", nbytes: int) -> None:
        self.nbytes = max(nbytes, 1)
        self.address = int(call(device.api.cuMemAlloc, self.nbytes))
        weakref.finalize(self, device.release, device.api.cuMemFree, self.address).atexit = False


class Device:
    """The first GPU that CUDA shows, in its primary context; `open_device` gives the one there is.

    Attributes:
        api: the module cuda.bindings.driver.
        name: what the GPU is called.
        capability: its compute capability, 89 for 8.9.
        cuda: the version of CUDA that the driver supports, as 13.0.
    """

    def __init__(self, api: Any) -> None:
        """Open it.

        Raises:
            DeviceError: if there is no GPU, or the driver refuses.
        """
        self.api = api
        call(api.cuInit, 0)
        device = call(api.cuDeviceGet, 0)
        self.name = call(api.cuDeviceGetName, 256, device).rstrip(b"\0").decode()
        self.capability = capability(api, device)
        version = call(api.cuDriverGetVersion)
        self.cuda = f"{version // 1000}.{version % 1000 // 10}"
        self._context = call(api.cuDevicePrimaryCtxRetain, device)
        self.use()

    def use(self) -> None:
        """Make it the one that calls of this thread go to."""
        call(self.api.cuCtxSetCurrent, self._context)

    def stream(self) -> int:
        """A new stream."""
        return int(call(self.api.cuStreamCreate, 0))

    def wait(self, stream: int) -> None:
        """Wait until all work of a stream is done."""
        call(self.api.cuStreamSynchronize, stream)

    def pinned(self, nbytes: int) -> Array:
        """Bytes of the host that the GPU copies from and to directly."""
        address = int(call(self.api.cuMemHostAlloc, max(nbytes, 1), 0))
        held = (c_ubyte * max(nbytes, 1)).from_address(address)
        weakref.finalize(held, self.release, self.api.cuMemFreeHost, address).atexit = False
        return np.ctypeslib.as_array(held)

    def upload(self, memory: DeviceMemory, array: Array) -> None:
        """Copy an array to the start of `memory`, and wait."""
        array = np.ascontiguousarray(array)
        self.use()
        call(self.api.cuMemcpyHtoD, memory.address, array.ctypes.data, array.nbytes)
        call(self.api.cuCtxSynchronize)  # the copy may not have arrived when the call returns

    def download(self, memory: DeviceMemory, array: Array) -> None:
        """Copy the start of `memory` into an array, and wait."""
        self.use()
        call(self.api.cuMemcpyDtoH, array.ctypes.data, memory.address, array.nbytes)

    def release(self, free: Any, held: Any) -> None:
        """Free memory or what else it is, from whatever thread."""
        self.use()
        free(held)


class Staging:
    """Arrays side by side in pinned memory of the host, and their copies on the device.

    Attributes:
        arrays: the arrays on the host.
        addresses: where their copies start.
    """

    def __init__(
        self, device: Device, specs: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]
    ) -> None:
        """Take memory for arrays of these shapes and dtypes."""
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in specs]
        starts = [sum(map(aligned, sizes[:index])) for index in range(len(sizes))]
        self._device = device
        self._host = device.pinned(sum(map(aligned, sizes)))
        self._memory = DeviceMemory(device, self._host.nbytes)
        self.arrays = [
            self._host[start : start + size].view(dtype).reshape(shape)
            for (shape, dtype), start, size in zip(specs, starts, sizes, strict=True)
        ]
        self.addresses = [self._memory.address + start for start in starts]

    def upload(self, stream: int) -> None:
        """Enqueue the copy to the device."""
        host, there = self._host, self._memory.address
        call(self._device.api.cuMemcpyHtoDAsync, there, host.ctypes.data, host.nbytes, stream)

    def download(self, stream: int) -> None:
        """Enqueue the copy from the device."""
        host, there = self._host, self._memory.address
        call(self._device.api.cuMemcpyDtoHAsync, host.ctypes.data, there, host.nbytes, stream)


class Stopwatch:
    """Time between two points of a stream, on the GPU's own clock; also of a captured graph."""

    def __init__(self, device: Device, stream: int) -> None:
        self._api, self._stream = device.api, stream
        self._events = [call(self._api.cuEventCreate, 0) for _ in range(2)]
        for event in self._events:
            destroy = self._api.cuEventDestroy
            weakref.finalize(self, device.release, destroy, event).atexit = False

    def start(self) -> None:
        """Enqueue the first point."""
        self._record(self._events[0])

    def stop(self) -> None:
        """Enqueue the second point."""
        self._record(self._events[1])

    def milliseconds(self) -> float:
        """The time between them, once the stream has passed both."""
        return float(call(self._api.cuEventElapsedTime, *self._events))

    def _record(self, event: Any) -> None:
        # Within a graph, an event can be read only if it is a node of its own.
        kinds, status = self._api.CUevent_record_flags, self._api.CUstreamCaptureStatus
        capture = call(self._api.cuStreamIsCapturing, self._stream)
        within = capture == status.CU_STREAM_CAPTURE_STATUS_ACTIVE
        kind = kinds.CU_EVENT_RECORD_EXTERNAL if within else kinds.CU_EVENT_RECORD_DEFAULT
        call(self._api.cuEventRecordWithFlags, event, self._stream, int(kind))


class Repeated:
    """What was enqueued to a stream while it was captured, to be launched again at once."""

    def __init__(self, device: Device, stream: int, enqueue: Any) -> None:
        """Capture what `enqueue` does.

        Raises:
            DeviceError: if something in it cannot be captured.
        """
        api = device.api
        self._launch, self._stream = api.cuGraphLaunch, stream
        mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call(api.cuStreamBeginCapture, stream, mode)
        try:
            enqueue()
        except BaseException:
            api.cuStreamEndCapture(stream)  # the stream is of no other use until then
            raise
        graph = call(api.cuStreamEndCapture, stream)
        self._graph = call(api.cuGraphInstantiate, graph, 0)
        call(api.cuGraphDestroy, graph)
        finish = weakref.finalize(self, device.release, api.cuGraphExecDestroy, self._graph)
        finish.atexit = False

    def launch(self) -> None:
        """Enqueue it all."""
        call(self._launch, self._graph, self._stream)


@cache
def open_device() -> Device:
    """The GPU of this process.

    Raises:
        MissingExtraError: if cuda-bindings is not installed.
        DeviceError: if there is no GPU, or the driver refuses.
    """
    try:
        api = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise MissingExtraError("running a TensorRT engine", "trt") from error
    if not has_device():  # the bindings' own complaint is about a library
        raise DeviceError("The CUDA driver finds no GPU here, and a TensorRT engine runs on one.")
    return Device(api)
