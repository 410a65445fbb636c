"""A stand-in for TensorRT and an engine of it, on the stand-in for a GPU.

The engine is the graph that it was built from, run by ONNX Runtime: what goes through the runtime
of TensorRT is compared with what does not.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from engines import ROOM
from gpu import ALIGNMENT, Driver

from intaglio.runtime.bundle import BundleGraph
from intaglio.runtime.session import Session
from intaglio.runtime.trt import driver, flavour, trt_engine
from intaglio.runtime.trt.driver import Device
from intaglio.runtime.trt.engine_build import ENGINE, TARGET


class TensorRT:
    """The module of a flavour, but for what it does with engines.

    Attributes:
        contexts: execution contexts that were made.
        fault: what TensorRT says when it refuses the engine; None to take it.
        runs: how often engines still run before they fail; None for ever.
        on_host: inputs that engines read on the host.
        layers: what engines tell of themselves, with the milliseconds `ms` that each takes.
        gap: milliseconds between a run's layers, all together.
        compiled: kernels that were compiled because no cache held them, by their shapes.
    """

    def __init__(self, real: Any, driver: Driver, graph: Any, profiles: Any) -> None:
        """Stand in for `real`; `graph` is an ONNX Runtime session of what its engines compute."""
        self._real = real
        self.driver, self.graph, self.profiles = driver, graph, profiles
        self._engines: dict[bytes, tuple[Any, Any]] = {}
        self.contexts: list[Context] = []
        self.fault: str | None = None
        self.runs: int | None = None
        self.on_host: set[str] = set()
        self.layers: list[dict[str, Any]] = []
        self.gap = 0.0
        self.compiled: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def add(self, graph: BundleGraph, computes: Any, profiles: Any) -> None:
        """Have the engine of a graph of several compute what `computes` does, in its profiles."""
        content = graph.bundle.read(graph.beside(TARGET, ENGINE))
        self._engines[content] = computes, profiles

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Be the library and the GPU that sessions find, and leave nothing behind."""
        device = Device(self.driver)
        patch.setattr(flavour, "load", lambda _: self)
        patch.setattr(driver, "open_device", lambda: device)
        patch.setattr(trt_engine, "_registered", {})

    def get_plugin_registry(self) -> Any:
        return SimpleNamespace(register_creator=lambda _creator, _namespace: True)

    def Runtime(self, log: Any) -> Any:  # noqa: N802
        def deserialize(content: bytes) -> Engine | None:
            assert content
            if self.fault is None:
                return Engine(self, *self._engines.get(content, (self.graph, self.profiles)))
            log.log(self.ILogger.Severity.ERROR, self.fault)
            return None

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class Engine:
    """What the runtime calls of an ICudaEngine."""

    device_memory_size_v2 = 1000

    def __init__(self, trt: TensorRT, graph: Any, profiles: Any) -> None:
        self._trt, self.graph, self.profiles = trt, graph, profiles
        takes, gives = graph.get_inputs(), graph.get_outputs()
        mode = trt.TensorIOMode
        self._modes = {v.name: mode.INPUT for v in takes} | {v.name: mode.OUTPUT for v in gives}
        self.num_io_tensors = len(self._modes)

    def get_tensor_name(self, index: int) -> str:
        return str(list(self._modes)[index])

    def get_tensor_mode(self, name: str) -> Any:
        return self._modes[name]

    def get_tensor_location(self, name: str) -> Any:
        place = self._trt.TensorLocation
        return place.HOST if name in self._trt.on_host else place.DEVICE

    def create_engine_inspector(self) -> Any:
        def told(form: Any) -> str:
            assert form == self._trt.LayerInformationFormat.JSON
            return json.dumps({"Layers": self._trt.layers, "Bindings": list(self._modes)})

        return SimpleNamespace(get_engine_information=told)

    def create_runtime_config(self) -> "RuntimeConfig":
        return RuntimeConfig(self._trt)

    def create_execution_context(self, how: Any) -> "Context":
        """Make one: `how` is a runtime's configuration, or the strategy alone."""
        trt, cache, strategy = self._trt, None, how
        if isinstance(how, RuntimeConfig):
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            assert how.dynamic_shapes_kernel_specialization_strategy == eager
            cache, strategy = how.cache, how.strategy
        assert strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
        trt.contexts.append(Context(trt, self, cache))
        return trt.contexts[-1]


class RuntimeConfig:
    """What the runtime calls of an IRuntimeConfig.

    Attributes:
        strategy: for the memory of contexts.
        cache: of compiled kernels.
    """

    dynamic_shapes_kernel_specialization_strategy: Any = None

    def __init__(self, trt: TensorRT) -> None:
        self._trt = trt
        self.strategy: Any = None
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> "RuntimeCache":
        return RuntimeCache(self._trt)

    def set_runtime_cache(self, cache: "RuntimeCache") -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """What the runtime calls of an IRuntimeCache: a line for each kernel."""

    def __init__(self, trt: TensorRT) -> None:
        self._trt = trt
        self._kernels: set[str] = set()

    def deserialize(self, content: bytes) -> bool:
        head, *kernels = content.decode().split("\n")
        if head != "kernels":
            return False
        self._kernels = set(kernels)
        return True

    def serialize(self) -> bytes:
        return "\n".join(["kernels", *sorted(self._kernels)]).encode()

    def compiled(self, kernel: str) -> None:
        """Have a kernel, from here on."""
        if kernel not in self._kernels:
            self._trt.compiled.append(kernel)
            self._kernels.add(kernel)


class Context:
    """What the runtime calls of an IExecutionContext: shapes, addresses, running.

    Attributes:
        engine: what it runs.
        profile: index of the profile that it is in.
        profiler: is told the layers of a run, as the context has it when the run is enqueued.
        enqueue_emits_profile: whether it is told at once, which a capture does not allow.
    """

    profiler: Any = None
    enqueue_emits_profile = True

    def __init__(self, trt: TensorRT, engine: Engine, cache: RuntimeCache | None) -> None:
        self._trt, self.engine = trt, engine
        self._cache = cache
        self._told: list[dict[str, Any]] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.profile: int | None = None

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= Engine.device_memory_size_v2
        self._trt.driver.require(address, size)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == 5
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        least, _, most = self.engine.profiles[self.profile].shapes.get(name, (shape,) * 3)
        assert all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)), name
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % ALIGNMENT == 0, f"{name} starts where TensorRT takes no tensor"
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self._trt.runs is not None:
            self._trt.runs -= 1
            if self._trt.runs < 0:
                return False
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        if self._cache is not None:
            self._cache.compiled(str(sorted(shapes.items())))
        timed = self.profiler is not None
        assert not (timed and self.enqueue_emits_profile)
        self._trt.driver.enqueue(stream, lambda: self._compute(shapes, addresses, timed=timed))
        return True

    def report_to_profiler(self) -> bool:
        for layer in self._told:
            self.profiler.report_layer_time(layer["Name"], layer["ms"])
        told, self._told = bool(self._told), []
        return told

    def _compute(
        self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int], *, timed: bool
    ) -> None:
        driver, graph = self._trt.driver, self.engine.graph
        driver.clock += self._trt.gap + sum(layer["ms"] for layer in self._trt.layers)
        self._told = list(self._trt.layers) if timed else []
        dtypes = {
            "tensor(int64)": np.int64,
            "tensor(float)": np.float32,
            "tensor(float16)": np.float16,
            "tensor(bool)": np.bool_,
        }
        given = {}
        for value in graph.get_inputs():
            among = driver.host if value.name in self._trt.on_host else driver.memory
            found = driver.view(
                addresses[value.name], shapes[value.name], dtypes[value.type], among
            )
            given[value.name] = found.copy()
        names = [value.name for value in graph.get_outputs()]
        for name, array in zip(names, graph.run(names, given), strict=True):
            driver.view(addresses[name], array.shape, array.dtype)[...] = array


@dataclass
class Setting:
    """A bundle that has an engine, and what stands in for the library and the GPU."""

    bundle: Path
    trt: TensorRT
    driver: Driver

    def load(self, target: str = TARGET) -> Session:
        return Session.load(self.bundle, target, threads=1, capacity=ROOM)
