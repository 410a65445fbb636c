"""Launch compiled kernels through the CUDA driver."""

import ctypes
import hashlib
import importlib
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from intaglio.errors import DeviceError
from intaglio.runtime.launch import POINTER_ALIGNMENT, Buffer, Launch, Shape, evaluate

from .driver import aligned, call, capability
from .kernels import NodeKernels

DEFAULT_SHARED = 48 << 10  # bytes of shared memory that a kernel may use without asking for more

# What drivers have loaded, by digest and entry: nodes, and contexts of one engine, share kernels.
_loaded: WeakKeyDictionary[Any, dict[tuple[bytes, str], Any]] = WeakKeyDictionary()


class Launcher:
    """The kernels of one plugin on the current GPU: loaded once, launched by the shapes given."""

    def __init__(self, kernels: NodeKernels, driver: Any = None) -> None:
        """Load the code for the GPU of the current context; `driver` is cuda.bindings.driver.

        Raises:
            BundleError: if there is no code for this GPU.
            DeviceError: if the driver does not load it.
        """
        self._driver = importlib.import_module("cuda.bindings.driver") if driver is None else driver
        here = capability(self._driver, call(self._driver.cuCtxGetDevice))
        self._plan = kernels.for_device(here)
        self._functions = {
            launch.code: self._load(kernels.code[f"{here}/{launch.code}"], launch)
            for variant in self._plan.variants
            for launch in variant.launches
        }

    def launch(
        self,
        shapes: Sequence[Shape | None],
        inputs: Sequence[int | None],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Launch what the plan says for these shapes.

        Args:
            shapes: of the inputs.
            inputs: addresses on the device; None for one that is absent.
            outputs: addresses on the device; one may be that of an input that is a state.
            workspace: address of scratch memory, see `plugin.workspace`.
            stream: the stream, as an integer.

        Raises:
            DeviceError: if an address is not aligned as kernels take it to be.
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
            values: list[int] = []
            kinds: list[Any] = []
            for argument in each.arguments:
                if isinstance(argument, Buffer):
                    values.append(_address(buffers[argument.kind][argument.index], each))
                    kinds.append(ctypes.c_void_p)
                else:
                    values.append(evaluate(argument, shapes))
                    kinds.append(ctypes.c_int32)
            call(
                self._driver.cuLaunchKernel,
                self._functions[each.code],
                *grid,
                *(each.threads, 1, 1),
                each.shared,
                stream,
                (tuple(values), tuple(kinds)),
                0,
            )

    def _load(self, code: bytes, launch: Launch) -> Any:
        key = (hashlib.sha256(code).digest(), launch.entry)
        known = _loaded.setdefault(self._driver, {})
        if key in known:
            return known[key]
        module = call(self._driver.cuModuleLoadData, code)
        function = known[key] = call(
            self._driver.cuModuleGetFunction, module, launch.entry.encode()
        )
        if launch.shared > DEFAULT_SHARED:
            kind = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            call(self._driver.cuFuncSetAttribute, function, kind, launch.shared)
        return function


def _address(address: int | None, launch: Launch) -> int:
    """An address that a kernel may load vectors from: what is not aligned would end the context."""
    if address is None or address % POINTER_ALIGNMENT:
        raise DeviceError(
            f"The kernel {launch.entry} is given a tensor at {address}, which is no multiple of "
            f"{POINTER_ALIGNMENT} bytes. This is a fault of intaglio: please report it."
        )
    return address
