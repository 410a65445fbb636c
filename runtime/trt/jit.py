"""Kernels that TensorRT-RTX compiles on the GPU itself, when an engine first runs at some shapes.

By default it does so in the background and goes on with general ones meanwhile; a step that is
captured then would keep those for ever.  Here the first run waits for them, and they are kept in
the user's cache: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/
"""

from contextlib import suppress
from typing import Any

from intaglio.runtime import user_cache

from .driver import Device


class Jit:
    """What compiles kernels for the contexts of one engine.

    Attributes:
        config: for contexts of the engine, whose memory the caller brings.
    """

    def __init__(self, trt: Any, cuda_engine: Any, device: Device, digest: str) -> None:
        """Take the kernels that were kept; where TensorRT refuses them, there are none.

        Args:
            trt: the module of TensorRT-RTX.
            cuda_engine: an engine of it.
            device: where it runs.
            digest: of its bytes.
        """
        config = cuda_engine.create_runtime_config()
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        config.set_execution_context_allocation_strategy(strategy)
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        self._cache = config.create_runtime_cache()
        name = f"{digest[:32]}-{device.capability}-{device.name.replace(' ', '-')}"
        self._path = user_cache.folder("engines") / name
        self._kept = b""
        with suppress(OSError):
            content = self._path.read_bytes()
            if self._cache.deserialize(content):
                self._kept = content
        config.set_runtime_cache(self._cache)
        self.config: Any = config

    def keep(self) -> None:
        """Keep what has been compiled by now."""
        content = bytes(self._cache.serialize())
        if content != self._kept:
            self._kept = content
            with suppress(OSError):  # the next process compiles again
                user_cache.put(self._path, content)
