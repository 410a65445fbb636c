"""The two flavours of TensorRT: the full one, which needs a GPU to build, and TensorRT-RTX.

Full TensorRT (`tensorrt`) is taken where it is installed and there is a GPU; TensorRT-RTX
(`tensorrt_rtx`, on the package index) builds engines on any machine.
"""

import ctypes
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intaglio.errors import MissingExtraError, NotHereError, OptionError

FLAVOURS = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
AUTO = "auto"
# Compute capabilities for which TensorRT-RTX 1.7 builds.
RTX_CAPABILITIES = (75, 80, 86, 89, 120, 121)


def choose(flavour: str = AUTO) -> str:
    """The flavour to build with.

    Raises:
        MissingExtraError: if none is installed.
        OptionError: if the one asked for is not installed, or cannot build here.
    """
    if flavour not in (AUTO, *FLAVOURS):
        raise OptionError(f"flavour is {flavour!r}; it should be auto, tensorrt or rtx.")
    present = [name for name, module in FLAVOURS.items() if importlib.util.find_spec(module)]
    if flavour == AUTO:
        usable = [name for name in present if name == "rtx" or has_device()]
        if not usable:
            raise MissingExtraError("building a TensorRT engine", "trt")
        return usable[0]
    if flavour not in present:
        raise OptionError(
            f"The flavour {flavour} needs the package {FLAVOURS[flavour]}, which is not installed."
        )
    if flavour == "tensorrt" and not has_device():
        raise OptionError(
            "Full TensorRT builds an engine on the GPU that will run it, and there is none here. "
            "Take the flavour rtx, or run `intaglio build` on the device."
        )
    return flavour


def for_rtx(capabilities: Sequence[int]) -> tuple[int, ...]:
    """Those that TensorRT-RTX builds for.

    Raises:
        NotHereError: if there is none among them.
    """
    found = tuple(sm for sm in capabilities if sm in RTX_CAPABILITIES)
    if not found:
        asked, known = (", ".join(map(str, each)) for each in (capabilities, RTX_CAPABILITIES))
        raise NotHereError(
            f"TensorRT-RTX builds for compute capability {known}, not for {asked}, which takes "
            "full TensorRT on the GPU itself."
        )
    return found


def installed(flavour: str) -> str | None:
    """The version of a flavour that is installed, None if it is not."""
    try:
        return str(load(flavour).__version__)
    except ImportError:
        return None


def load(flavour: str) -> Any:
    """The Python module of a flavour."""
    return importlib.import_module(FLAVOURS[flavour])


def configure(trt: Any, config: Any, flavour: str, capabilities: Sequence[int]) -> None:
    """Set what engines of either flavour have in common: the GPUs, and fp32 that is fp32."""
    config.clear_flag(trt.BuilderFlag.TF32)  # it has 10 bits
    if flavour == "rtx":
        config.num_compute_capabilities = len(capabilities)
        for index, sm in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)


def has_device() -> bool:
    """Whether the CUDA driver finds a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return (
        driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    ) and count.value > 0


def load_libraries() -> Path:
    """The folder in which the wheel of TensorRT-RTX has its libraries."""
    (folder,) = importlib.import_module("tensorrt_rtx_libs").__path__
    return Path(folder)
