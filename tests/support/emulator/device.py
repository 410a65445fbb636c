"""The stand-in for a GPU's driver, with kernels that run."""

import ctypes
from types import SimpleNamespace
from typing import Any

import torch
from gpu import ALIGNMENT, Driver
from torch import Tensor

from .kernel import kernel_of
from .memory import Global, Traffic

FREE = 48 << 10  # bytes of shared memory that nobody has to ask for
STREAM = 5  # the one that the driver makes


class Gpu(Driver):
    """What launches kernels of the driver; modules are PTX.

    Attributes:
        first_wins: of the threads that write to one place at once, the first wins, not the last.
        traffic: what warps ask of the memory of the device, if it is counted.
    """

    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared")

    def __init__(
        self, capability: int, *, first_wins: bool = False, traffic: Traffic | None = None
    ) -> None:
        super().__init__(capability)
        self.first_wins, self.traffic = first_wins, traffic
        self._shared: dict[Any, int] = {}

    def cuCtxGetDevice(self) -> tuple[int, int]:  # noqa: N802
        return 0, 7

    def cuModuleLoadData(self, code: bytes) -> tuple[int, str]:  # noqa: N802
        return 0, code.decode().rstrip("\0")

    def cuModuleGetFunction(self, module: str, entry: bytes) -> tuple[int, Any]:  # noqa: N802
        return 0, kernel_of(module, entry.decode())

    def cuFuncSetAttribute(self, function: Any, kind: str, value: int) -> tuple[int]:  # noqa: N802
        assert kind == "shared"
        self._shared[function] = value
        return (0,)

    def cuLaunchKernel(self, function: Any, *rest: Any) -> tuple[int]:  # noqa: N802
        x, y, z, threads, height, depth, shared, stream, (values, kinds), extra = rest
        assert (height, depth, extra) == (1, 1, 0)
        assert shared <= self._shared.get(function, FREE), "more shared memory than was asked for"
        for value, kind in zip(values, kinds, strict=True):
            assert (kind(value).value or 0) == value, "an argument that its kind does not hold"

        def run() -> None:
            memory = Global(self.allocations(), first_wins=self.first_wins, traffic=self.traffic)
            function.launch((x, y, z), threads, shared, values, memory)

        self.enqueue(stream, run)
        return (0,)

    def allocations(self) -> dict[int, int]:
        """Bytes of the device's memory that are in use, by address."""
        return {at: len(held) - ALIGNMENT for at, held in self.memory.items()}

    def put(self, x: Tensor) -> int:
        """The address of a copy of a tensor."""
        x = x.contiguous()
        _, address = self.cuMemAlloc(max(x.nbytes, 1))
        ctypes.memmove(address, x.data_ptr(), x.nbytes)
        return address

    def get(self, address: int, like: Tensor) -> Tensor:
        """A tensor that lies at an address."""
        made = torch.empty_like(like)
        self.require(address, made.nbytes)
        ctypes.memmove(made.data_ptr(), address, made.nbytes)
        return made
