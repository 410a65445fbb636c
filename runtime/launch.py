"""What a plugin launches on a GPU: compiled kernels, with sizes as expressions over input shapes.

A plan is data: it is made where kernels are compiled, travels in an engine as JSON beside the
code, and is evaluated where the engine runs.  The operations of sizes are those that TensorRT's
expression builder has, so that a plan describes an ahead-of-time plugin as well.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

POINTER_ALIGNMENT = 16  # bytes; compiled kernels take the address of any tensor as a multiple

Shape = Sequence[int]
T = TypeVar("T")


@dataclass(frozen=True)
class Expression:
    """A size that follows from the shapes of the inputs.

    Attributes:
        operation: "dim", or the name of one of `OPERATIONS`.
        of: input and axis of a "dim"; else the two operands.
    """

    operation: str
    of: tuple["Size", "Size"]

    def __add__(self, other: "Size") -> "Expression":
        """The sum."""
        return Expression("sum", (self, other))

    def __sub__(self, other: "Size") -> "Expression":
        """The difference."""
        return Expression("sub", (self, other))

    def __mul__(self, other: "Size") -> "Expression":
        """The product."""
        return Expression("prod", (self, other))

    def __floordiv__(self, other: "Size") -> "Expression":
        """The quotient, rounded down."""
        return Expression("floor_div", (self, other))


Size = int | Expression

# By the names of tensorrt.DimensionOperation, in lower case.
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "sum": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "prod": lambda a, b: a * b,
    "max": max,
    "min": min,
    "less": lambda a, b: int(a < b),
    "floor_div": lambda a, b: a // b,
    "ceil_div": lambda a, b: -(-a // b),
}


def dim(index: int, axis: int) -> Expression:
    """The size of an axis of an input."""
    return Expression("dim", (index, axis))


def ceil_div(a: Size, b: Size) -> Size:
    """The quotient, rounded up."""
    return -(-a // b) if isinstance(a, int) and isinstance(b, int) else _of("ceil_div", a, b)


def less(a: Size, b: Size) -> Size:
    """1 where a < b, otherwise 0."""
    return _of("less", a, b)


def _of(operation: str, a: Size, b: Size) -> Expression:
    return Expression(operation, (a, b))


def product(sizes: Sequence[Size]) -> Size:
    """The product of sizes, 1 for none."""
    known = math.prod(size for size in sizes if isinstance(size, int))
    whole: Size = known
    for size in sizes:
        if isinstance(size, Expression):
            whole = size if whole == 1 else size * whole
    return whole


def evaluate(size: Size, shapes: Sequence[Shape | None]) -> int:
    """The size for inputs of these shapes."""
    if isinstance(size, int):
        return size
    if size.operation == "dim":
        index, axis = cast("tuple[int, int]", size.of)
        shape = shapes[index]
        assert shape is not None, "a plan reads the shape of an input that is absent"
        return shape[axis]
    a, b = (evaluate(each, shapes) for each in size.of)
    return OPERATIONS[size.operation](a, b)


@dataclass(frozen=True)
class Buffer:
    """A tensor as an argument of a kernel: "input", "output" or "scratch", and which."""

    kind: str
    index: int


Argument = Buffer | Size


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One compiled kernel.

    Attributes:
        code: which of the plan's pieces of code.
        entry: the name of the kernel in it.
        arguments: pointers and 32-bit integers, in the order of the kernel.
        grid: blocks along each axis.
        threads: threads of a block.
        shared: bytes of dynamic shared memory.
    """

    code: str
    entry: str
    arguments: tuple[Argument, ...]
    grid: tuple[Size, Size, Size]
    threads: int
    shared: int


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Kernels launched one after the other, where `when` is not 0 (None: always).

    Attributes:
        when: for which shapes this is the way; the first of a plan's variants that fits is taken.
        launches: kernels in their order.
        scratch: bytes of each scratch tensor.
    """

    when: Size | None
    launches: tuple[Launch, ...]
    scratch: tuple[Size, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Output:
    """Dtype and shape of an output."""

    dtype: str
    shape: tuple[Size, ...]


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """All that a plugin does with inputs of given dtypes.

    Attributes:
        inputs: dtype of each input by numpy's name; None for one that is absent.
        outputs: what comes out.
        variants: ways to compute it.
    """

    inputs: tuple[str | None, ...]
    outputs: tuple[Output, ...]
    variants: tuple[Variant, ...]

    def spread(self, given: Sequence[T]) -> list[T | None]:
        """What a plugin is given, at the places of its operator's inputs.

        TensorRT's importer gives something for each input of the standard's operators; of a node of
        our own there is none for an absent input.
        """
        present = [index for index, dtype in enumerate(self.inputs) if dtype is not None]
        if len(given) != len(present):
            return list(given)
        at = dict(zip(present, given, strict=True))
        return [at.get(index) for index in range(len(self.inputs))]

    def variant(self, shapes: Sequence[Shape | None]) -> Variant:
        """The way for inputs of these shapes."""
        return next(v for v in self.variants if v.when is None or evaluate(v.when, shapes))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "inputs": list(self.inputs),
            "outputs": [{"dtype": o.dtype, "shape": _write(o.shape)} for o in self.outputs],
            "variants": [
                {
                    "when": None if v.when is None else _write(v.when),
                    "launches": [
                        {
                            "code": each.code,
                            "entry": each.entry,
                            "arguments": [_write(argument) for argument in each.arguments],
                            "grid": _write(each.grid),
                            "threads": each.threads,
                            "shared": each.shared,
                        }
                        for each in v.launches
                    ],
                    "scratch": _write(v.scratch),
                }
                for v in self.variants
            ],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The plan that `to_json` wrote."""
        return cls(
            inputs=tuple(values["inputs"]),
            outputs=tuple(
                Output(dtype=o["dtype"], shape=_sizes(o["shape"])) for o in values["outputs"]
            ),
            variants=tuple(
                Variant(
                    when=None if v["when"] is None else _size(v["when"]),
                    launches=tuple(
                        Launch(
                            code=each["code"],
                            entry=each["entry"],
                            arguments=tuple(map(_argument, each["arguments"])),
                            grid=cast("tuple[Size, Size, Size]", _sizes(each["grid"])),
                            threads=each["threads"],
                            shared=each["shared"],
                        )
                        for each in v["launches"]
                    ),
                    scratch=_sizes(v["scratch"]),
                )
                for v in values["variants"]
            ),
        )


def _write(value: Argument | tuple[Argument, ...]) -> Any:
    if isinstance(value, Buffer):
        return {value.kind: value.index}
    if isinstance(value, Expression):
        return [value.operation, *map(_write, value.of)]
    return [_write(each) for each in value] if isinstance(value, tuple) else value


def _size(value: Any) -> Size:
    return value if isinstance(value, int) else Expression(value[0], _pair(value[1:]))


def _pair(values: Any) -> tuple[Size, Size]:
    first, second = map(_size, values)
    return first, second


def _sizes(values: Any) -> tuple[Size, ...]:
    return tuple(map(_size, values))


def _argument(value: Any) -> Argument:
    if isinstance(value, dict):
        ((kind, index),) = value.items()
        return Buffer(kind, index)
    return _size(value)
