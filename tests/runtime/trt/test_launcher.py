"""The launcher asks the driver for exactly what the plan says."""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from intaglio.errors import BundleError, DeviceError
from intaglio.runtime.trt.kernels import NodeKernels
from intaglio.runtime.trt.launcher import Launcher


class Driver:
    """What a launcher calls of cuda.bindings.driver, recorded."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared")

    def __init__(self, capability: int, status: int = 0) -> None:
        self.capability, self.status = capability, status
        self.shared: dict[str, int] = {}
        self.launched: list[tuple[Any, ...]] = []

    def cuCtxGetDevice(self) -> tuple[int, int]:  # noqa: N802
        return 0, 7

    def cuDeviceGetAttribute(self, kind: str, device: int) -> tuple[int, int]:  # noqa: N802
        assert device == 7
        return 0, divmod(self.capability, 10)[kind == "minor"]

    def cuModuleLoadData(self, code: bytes) -> tuple[int, str]:  # noqa: N802
        return self.status, code.decode()

    def cuModuleGetFunction(self, module: str, entry: bytes) -> tuple[int, str]:  # noqa: N802
        assert module.startswith(entry.decode())
        return 0, module

    def cuFuncSetAttribute(self, function: str, kind: str, value: int) -> tuple[int]:  # noqa: N802
        assert kind == "shared"
        self.shared[function] = value
        return (0,)

    def cuLaunchKernel(self, *arguments: Any) -> tuple[int]:  # noqa: N802
        self.launched.append(arguments)
        return (0,)


SHAPES = [(2, 40, 64), (2, 40, 64), (2, 40, 64), (2, 4, 16, 16)]
INPUTS, OUTPUTS = [160, 176, 192, 208], [320, 336]
POINTER, NUMBER = ctypes.c_void_p, ctypes.c_int32


def test_a_step_is_one_launch(make_kernels: Callable[..., NodeKernels]) -> None:
    """Function, grid, block, shared memory, stream, and arguments with their types."""
    driver = Driver(80)
    shapes = [(2, 1, 64), *SHAPES[1:]]
    Launcher(make_kernels(), driver).launch(shapes, INPUTS, OUTPUTS, 1000, 5)

    kinds = (POINTER, POINTER, NUMBER, POINTER)
    assert driver.launched == [
        (
            "walk_0 for 80",
            1,
            4,
            2,
            128,
            1,
            1,
            1024,
            5,
            ((INPUTS[0], INPUTS[3], 1, OUTPUTS[1]), kinds),
            0,
        )
    ]
    assert driver.shared == {}


def test_scratch_is_cut_out_of_the_workspace(make_kernels: Callable[..., NodeKernels]) -> None:
    """Each tensor starts where kernels may assume it to: at a multiple of 256 bytes."""
    driver = Driver(90)
    Launcher(make_kernels(), driver).launch(SHAPES, INPUTS, OUTPUTS, 1024, 5)

    assert [call[0] for call in driver.launched] == ["within_0 for 90", "across_0 for 90"]
    assert [call[1:4] for call in driver.launched] == [(2, 4, 2)] * 2
    assert [call[9][0][0] for call in driver.launched] == [1024 + 256, 1024]
    assert set(driver.shared.values()) == {100_000}


def test_an_address_that_is_not_aligned_is_refused(
    make_kernels: Callable[..., NodeKernels],
) -> None:
    """A GPU would end all that runs on it, and name nothing."""
    driver = Driver(80)
    for inputs in ([168, *INPUTS[1:]], [None, *INPUTS[1:]]):
        with pytest.raises(DeviceError, match=r"walk is given a tensor at (168|None)"):
            Launcher(make_kernels(), driver).launch(
                [(2, 1, 64), *SHAPES[1:]], inputs, OUTPUTS, 1024, 5
            )
    assert driver.launched == []


def test_an_empty_grid_is_not_launched(make_kernels: Callable[..., NodeKernels]) -> None:
    """The driver refuses a grid of no blocks."""
    driver = Driver(80)
    Launcher(make_kernels(), driver).launch([(2, 0, 64), *SHAPES[1:]], INPUTS, OUTPUTS, 0, 5)

    assert driver.launched == []


def test_a_gpu_without_code_is_told(make_kernels: Callable[..., NodeKernels]) -> None:
    """Which there is code for, and what to do."""
    with pytest.raises(BundleError, match=r"for compute capability 80, 90; this GPU has 120\. Ex"):
        Launcher(make_kernels(), Driver(120))


def test_what_the_driver_refuses_is_an_error(make_kernels: Callable[..., NodeKernels]) -> None:
    """With the call that failed."""
    with pytest.raises(DeviceError, match="cuModuleLoadData failed: 200"):
        Launcher(make_kernels(), Driver(80, status=200))
