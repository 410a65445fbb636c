"""What a GPU reaches at best: bytes of its memory by copying, operations by a matrix product.

The product is an engine of TensorRT itself, of the dtype that a bundle computes in.  Both are
measured once for a GPU, driver and library, and kept in the user's cache.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from intaglio.errors import DeviceError
from intaglio.runtime.kept_ceilings import kept
from intaglio.runtime.work import Ceilings

from . import flavour as flavours
from .driver import Device, DeviceMemory, Stopwatch, call
from .trt_engine import TrtEngine

COPIED = 256 << 20  # bytes of a copy: several times the largest cache of a GPU
SIZE = 4096  # of the square matrices
ROUNDS = 10
INPUTS, OUTPUT = ("a", "b"), "y"


def of(engine: TrtEngine, dtype: str) -> Ceilings:
    """The ceilings of the GPU of an engine, for products of `dtype`.

    Raises:
        DeviceError: if the GPU or TensorRT fails at it.
    """
    device, built = engine.device, engine.built
    key = [device.name, device.capability, device.cuda, built.flavour, built.version, dtype]
    return kept(key, lambda: _measure(engine, dtype))


def _measure(engine: TrtEngine, dtype: str) -> Ceilings:
    device = engine.device
    device.use()
    stream = device.stream()
    copied = _best(device, stream, _Copy(device))
    multiplied = _best(device, stream, _MatrixProduct(engine, dtype))
    return Ceilings(
        bytes=2 * COPIED / copied * 1e3,
        operations={dtype: 2 * SIZE**3 / multiplied * 1e3},
        device=device.name,
    )


def _best(device: Device, stream: int, enqueue: Callable[[int], None]) -> float:
    """The least milliseconds of several rounds, after two that warm up."""
    clock, times = Stopwatch(device, stream), []
    for _ in range(2 + ROUNDS):
        clock.start()
        enqueue(stream)
        clock.stop()
        device.wait(stream)
        times.append(clock.milliseconds())
    return min(times[2:])


class _Copy:
    """A copy within the memory of the device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._source, self._to = DeviceMemory(device, COPIED), DeviceMemory(device, COPIED)

    def __call__(self, stream: int) -> None:
        addresses = self._to.address, self._source.address
        call(self._device.api.cuMemcpyDtoDAsync, *addresses, COPIED, stream)


class _MatrixProduct:
    """A matrix product of random numbers: of zeros a GPU is faster than of others."""

    def __init__(self, engine: TrtEngine, dtype: str) -> None:
        self._complaint = engine.log.complaint
        content = plan(engine.trt, engine.log, engine.built.flavour, engine.device, dtype)
        self._engine = engine.runtime.deserialize_cuda_engine(content)
        self._context: Any = self._engine and self._engine.create_execution_context()
        if self._context is None:
            raise DeviceError(f"TensorRT runs no matrix product: {self._complaint()}.")
        numbers = np.random.default_rng(0).standard_normal((SIZE, SIZE), np.float32).astype(dtype)
        self._held = {name: DeviceMemory(engine.device, numbers.nbytes) for name in INPUTS}
        self._held[OUTPUT] = DeviceMemory(engine.device, numbers.nbytes)
        for name, memory in self._held.items():
            engine.device.upload(memory, numbers)
            self._context.set_tensor_address(name, memory.address)

    def __call__(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise DeviceError(f"TensorRT runs no matrix product: {self._complaint()}.")


def plan(trt: Any, log: Any, flavour: str, device: Device, dtype: str) -> Any:
    """A serialized engine that multiplies two square matrices of `dtype`.

    Raises:
        DeviceError: if TensorRT builds none.
    """
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    kind = getattr(trt.DataType, {"float16": "HALF", "float32": "FLOAT"}[dtype])
    a, b = (network.add_input(name, kind, (SIZE, SIZE)) for name in INPUTS)
    none = trt.MatrixOperation.NONE
    product = network.add_matrix_multiply(a, none, b, none).get_output(0)
    product.name = OUTPUT
    network.mark_output(product)
    config = builder.create_builder_config()
    flavours.configure(trt, config, flavour, (device.capability,))
    found = builder.build_serialized_network(network, config)
    if found is None:
        raise DeviceError(f"TensorRT builds no matrix product: {log.complaint()}.")
    return found
