"""Launch compiled kernels through the CUDA driver."""

import ctypes
import importlib
from collections.abc import Sequence
from typing import Any

from intaglio.errors import IntaglioError
from intaglio.runtime.launch import Buffer, Launch, Shape, evaluate

from .kernels import Kernels

DEFAULT_SHARED = 48 << 10  # bytes of shared memory that a kernel may use without asking for more
ALIGNMENT = 256  # bytes; of every scratch tensor, as kernels are compiled for


def aligned(size: int) -> int:
    """Bytes of a scratch tensor with what keeps the next one aligned."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class CudaError(IntaglioError):
    """The CUDA driver refuses what it is asked."""


class Launcher:
    """The kernels of one plugin on the current GPU: loaded once, launched by the shapes given."""

    def __init__(self, kernels: Kernels, driver: Any = None) -> None:
        """Load the code for the GPU of the current context; `driver` is cuda.bindings.driver.

        Raises:
            BundleError: if there is no code for this GPU.
            CudaError: if the driver does not load it.
        """
        self._driver = importlib.import_module("cuda.bindings.driver") if driver is None else driver
        capability = self._capability()
        self._plan = kernels.for_device(capability)
        self._functions = {
            launch.code: self._load(kernels.code[f"{capability}/{launch.code}"], launch)
            for variant in self._plan.variants
            for launch in variant.launches
        }

    def launch(
        self,
        shapes: Sequence[Shape | None],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Launch what the plan says for these shapes.

        Args:
            shapes: of the inputs.
            inputs: addresses on the device.
            outputs: addresses on the device; one may be that of an input that is a state.
            workspace: address of scratch memory, see `plugin.workspace`.
            stream: the stream, as an integer.
        """
        variant = self._plan.variant(shapes)
        scratch = []
        for size in variant.scratch:
            scratch.append(workspace)
            workspace += aligned(evaluate(size, shapes))
        buffers = {"input": inputs, "output": outputs, "scratch": scratch}
        for each in variant.launches:
            grid = [evaluate(size, shapes) for size in each.grid]
            if 0 in grid:
                continue
            values, kinds = [], []
            for argument in each.arguments:
                pointer = isinstance(argument, Buffer)
                values.append(
                    buffers[argument.kind][argument.index]
                    if isinstance(argument, Buffer)
                    else evaluate(argument, shapes)
                )
                kinds.append(ctypes.c_void_p if pointer else ctypes.c_int32)
            self._call(
                self._driver.cuLaunchKernel,
                self._functions[each.code],
                *grid,
                *(each.threads, 1, 1),
                each.shared,
                stream,
                (tuple(values), tuple(kinds)),
                0,
            )

    def _capability(self) -> int:
        device = self._call(self._driver.cuCtxGetDevice)
        kinds = self._driver.CUdevice_attribute
        major, minor = (
            self._call(self._driver.cuDeviceGetAttribute, kind, device)
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        return int(major) * 10 + int(minor)

    def _load(self, code: bytes, launch: Launch) -> Any:
        module = self._call(self._driver.cuModuleLoadData, code)
        function = self._call(self._driver.cuModuleGetFunction, module, launch.entry.encode())
        if launch.shared > DEFAULT_SHARED:
            kind = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call(self._driver.cuFuncSetAttribute, function, kind, launch.shared)
        return function

    def _call(self, function: Any, *arguments: Any) -> Any:
        """What a call of the driver gives, after its status."""
        status, *values = function(*arguments)
        if int(status):
            raise CudaError(f"the CUDA driver's {function.__name__} failed: {status}.")
        return values[0] if values else None
