"""What a TensorRT plugin of ours declares, once: its operator and the Triton kernels for a request.

A kernel's parameters stand in the order that ahead-of-time plugins need: inputs, 32-bit integers,
outputs, and then what is constant.  Buffers that kernels hand to each other come after the inputs
where they are read and after the outputs where they are written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy.typing as npt

from intaglio.errors import UnsupportedError
from intaglio.ops.op import Op
from intaglio.runtime.launch import Argument, Buffer, Output, Size

Array = npt.NDArray[Any]

FLOATS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Input:
    """What is known of an input when kernels are compiled: dtype, and sizes (None: dynamic)."""

    dtype: str
    shape: tuple[int | None, ...]

    def size(self, axis: int, name: str) -> int:
        """The size of an axis.

        Raises:
            UnsupportedError: if it is dynamic; the message tells the `name` of the input.
        """
        size = self.shape[axis]
        if size is None:
            raise UnsupportedError(f"{name}: axis {axis} is dynamic; its kernels need its size.")
        return size


@dataclass(frozen=True, kw_only=True)
class Request:
    """One node to compile kernels for.

    Attributes:
        attributes: attributes of the node.
        inputs: by the operator's names; absent ones are left out.
        sm: compute capability, 90 for 9.0.
        alone: whether one launch has to do it all, without scratch memory, see `quick.py`.
    """

    attributes: Mapping[str, Any]
    inputs: Mapping[str, Input]
    sm: int
    alone: bool = False

    def to_json(self) -> dict[str, Any]:
        """The request as JSON values."""
        inputs = {name: [given.dtype, list(given.shape)] for name, given in self.inputs.items()}
        return {
            "attributes": dict(self.attributes),
            "inputs": inputs,
            "sm": self.sm,
            "alone": self.alone,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The request that `to_json` wrote."""
        inputs = {
            name: Input(dtype, tuple(shape)) for name, (dtype, shape) in values["inputs"].items()
        }
        return cls(
            attributes=values["attributes"],
            inputs=inputs,
            sm=values["sm"],
            alone=values["alone"],
        )


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A launch of a Triton kernel.

    Attributes:
        function: the kernel.
        arguments: by parameter; None for an absent tensor.
        constants: the rest of its parameters.
        grid: programs along each axis.
        warps: warps of a program.
        stages: depth to which Triton pipelines loads.
        elements: weights, or elements of state times tokens, that a program handles in one trip of
            its main loop, by which instructions are counted; 0 where it has no such loop.
    """

    function: Any
    arguments: Mapping[str, Argument | None]
    constants: Mapping[str, Any]
    grid: tuple[Size, Size, Size]
    warps: int = 4
    stages: int = 2
    elements: int = 0


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """A buffer that kernels of one variant hand to each other."""

    dtype: str
    shape: tuple[Size, ...]


@dataclass(frozen=True, kw_only=True)
class Way:
    """Kernels launched one after the other, for shapes where `when` is not 0 (None: for all)."""

    kernels: Sequence[Kernel]
    when: Size | None = None
    scratch: Sequence[Scratch] = ()


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """All that a plugin launches for a request: outputs, and the ways to compute them in turn."""

    outputs: Sequence[Output]
    ways: Sequence[Way]


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """An operator and its kernels.

    Attributes:
        op: what is computed.
        kernels: Triton kernels for a request; raises UnsupportedError where there are none.
        requests: requests for a compute capability, by name: those whose compilation is recorded.
        tolerance: most that a result may differ from the operator in float64, max|a-b| / max|b|,
            by the dtype of the activations.
        inputs: names of what the kernels read, where that is not what the operator reads.
        prepare: makes these of the operator's arguments and attributes, once, before an engine is
            built; None where they are the same.
    """

    op: Op
    kernels: Callable[[Request], Kernels]
    requests: Callable[[int], Mapping[str, Request]]
    tolerance: Mapping[str, float]
    inputs: Sequence[str] = field(default=())
    prepare: Callable[[Mapping[str, Array], Mapping[str, Any]], Mapping[str, Array]] | None = None

    def __post_init__(self) -> None:
        """Take the operator's inputs where no others are declared."""
        object.__setattr__(self, "inputs", tuple(self.inputs or self.op.inputs))

    @property
    def name(self) -> str:
        """The name of the operator and of the file."""
        return self.op.name


def tensors_of(request: Request, names: Sequence[str]) -> dict[str, Buffer | None]:
    """The inputs `names` as arguments of kernels; None for those that are absent."""
    return {
        name: Buffer("input", index) if name in request.inputs else None
        for index, name in enumerate(names)
    }


def float_of(request: Request, name: str) -> str:
    """The dtype of an input that has to be a float of up to 32 bits.

    Raises:
        UnsupportedError: if it is another.
    """
    dtype = request.inputs[name].dtype
    if dtype not in FLOATS:
        raise UnsupportedError(f"{name} is {dtype}; kernels take {', '.join(FLOATS)}.")
    return dtype


def power_of_two(size: int, least: int = 1) -> int:
    """The smallest power of two that is at least `size` and `least`."""
    return 1 << (max(size, least) - 1).bit_length()
