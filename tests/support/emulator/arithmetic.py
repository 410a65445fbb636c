"""Instructions that compute in the registers of one thread."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .lanes import Lanes, Reader, Step, guard_of, reader
from .memory import Array
from .program import Instruction, Operand, Register
from .values import KINDS, UNSIGNED


def _unordered(a: Array, b: Array) -> Array:
    return np.asarray((a != a) | (b != b))  # noqa: PLR0124  NaN alone differs from itself


# What may stand between an opcode and its type, and says nothing that is not done here anyway.
SUFFIXES = {"lo", "hi", "wide", "rn", "approx", "full", "ftz", "f32"}
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal,
    "ne": lambda a, b: (a != b) & ~_unordered(a, b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "nan": _unordered,
    "neu": np.not_equal,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": lambda a, b: np.fmin(a, b) if a.dtype.kind == "f" else np.minimum(a, b),
    "max": lambda a, b: np.fmax(a, b) if a.dtype.kind == "f" else np.maximum(a, b),
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "neg": np.negative,
    "abs": np.abs,
    "ex2": np.exp2,
    "fma": lambda a, b, c: a.astype(np.float64) * b + c,  # rounded once, as it is stored
    "mad": lambda a, b, c: a * b + c,
    "shl": lambda a, b: np.where(b < 8 * a.itemsize, a << (b & 8 * a.itemsize - 1), 0),
    "shr": lambda a, b: np.where(
        (b < 8 * a.itemsize) | (a.dtype.kind == "i"),
        a >> np.minimum(b, 8 * a.itemsize - 1).astype(a.dtype),
        0,
    ),
}


def arithmetic(instruction: Instruction) -> Step | None:
    """What carries the instruction out; None if it is of another sort."""
    opcode, *between = instruction.name[:-1] or instruction.name
    if opcode in _SPECIAL:
        return _SPECIAL[opcode](instruction)
    if "hi" in between and (opcode != "mul" or instruction.name[-1].endswith("64")):
        return None
    return _plain(instruction) if opcode in FUNCTIONS and SUFFIXES.issuperset(between) else None


def _plain(instruction: Instruction) -> Step:
    """One function of operands of one type; `f32.f16` takes both.

    `wide` gives twice their bits, `hi` the upper half of these, of products of at most 32 bits.
    """
    name, (to, *given) = instruction.name, instruction.operands
    function, kind = FUNCTIONS[name[0]], name[-1]
    result = kind
    kinds = [kind] * len(given)
    if name[0] in {"shl", "shr"}:
        kinds[1] = "u32"
    if "wide" in name:
        result = f"{kind[0]}{2 * int(kind[1:])}"
        kinds[2:] = [result] * len(kinds[2:])
    if name[-2] == "f32":  # add.rn.f32.f16 widens the first operand, fma the first two
        result = "f32"
        kinds[-1] = "f32"
    readers = [reader(each, of) for each, of in zip(given, kinds, strict=True)]
    if "hi" in name:
        bits, product, double = int(kind[1:]), function, KINDS[f"{kind[0]}{2 * int(kind[1:])}"][0]
        readers = [_widened(each, double) for each in readers]
        function = lambda a, b: (product(a, b) >> bits).astype(KINDS[kind][0])  # noqa: E731
    if "wide" in name:
        wide = KINDS[result][0]
        readers[:2] = [_widened(each, wide) for each in readers[:2]]
    return _put(instruction, to, result, lambda lanes: function(*(read(lanes) for read in readers)))


def _widened(read: Reader, dtype: Any) -> Reader:
    return lambda lanes: read(lanes).astype(dtype)


def _put(instruction: Instruction, to: Operand, kind: str, values: Reader) -> Step:
    """Write values to a register, where the guard is set."""
    assert isinstance(to, Register), instruction.text
    guard = guard_of(instruction)
    return lambda lanes: lanes.put(to, kind, values(lanes), None if guard is None else guard(lanes))


def _move(instruction: Instruction) -> Step | None:
    """`mov`, packing and unpacking included; None for what gives a special register."""
    name, (to, given) = instruction.name, instruction.operands
    kind = name[-1]
    if isinstance(given, tuple):
        width = int(kind[1:]) // len(given)
        parts = [reader(each, f"b{width}") for each in given]

        def packed(lanes: Lanes) -> Array:
            columns = np.broadcast_arrays(*(part(lanes) for part in parts), np.empty(len(lanes)))
            joined = np.ascontiguousarray(np.stack(columns[:-1], -1))
            return np.asarray(joined.view(UNSIGNED[len(parts) * joined.itemsize])[:, 0])

        return _put(instruction, to, kind, packed)
    if isinstance(to, tuple):
        whole = reader(given, kind)
        width = int(kind[1:]) // 8 // len(to)

        def unpack(lanes: Lanes) -> None:
            pieces = whole(lanes).view(UNSIGNED[width]).reshape(len(lanes), -1)
            for index, register in enumerate(to):
                if isinstance(register, Register):  # not the sink, _
                    lanes.put(register, f"b{8 * width}", pieces[:, index])

        assert instruction.guard is None
        return unpack
    if not isinstance(given, Register) and not hasattr(given, "bits"):
        return None
    return _put(instruction, to, kind, reader(given, kind))


def _compare(instruction: Instruction) -> Step:
    _, comparison, kind = instruction.name
    (to, a, b), compare = instruction.operands, COMPARISONS[comparison]
    left, right = reader(a, kind), reader(b, kind)
    return _put(instruction, to, "pred", lambda lanes: compare(left(lanes), right(lanes)))


def _select(instruction: Instruction) -> Step:
    to, a, b, predicate = instruction.operands
    kind = instruction.name[-1].replace("f", "b")  # bits, whatever they stand for
    left, right, chosen = reader(a, kind), reader(b, kind), reader(predicate, "pred")
    values = lambda lanes: np.where(chosen(lanes), left(lanes), right(lanes))  # noqa: E731
    return _put(instruction, to, kind, values)


def _convert(instruction: Instruction) -> Step:
    """`cvt`; with two operands the first fills the upper half."""
    (to, *given), (_, *between, result, kind) = instruction.operands, instruction.name
    assert between in ([], ["rn"]), instruction.text
    readers = [reader(each, kind) for each in given]
    if len(readers) == 2:
        high, low = readers
        return _put(
            instruction, to, result, lambda lanes: np.stack([low(lanes), high(lanes)], axis=-1)
        )
    (read,) = readers
    assert not (kind.startswith("f") and result[0] in "us"), instruction.text
    return _put(instruction, to, result, read)


def _extract(instruction: Instruction) -> Step:
    """`bfe`: some bits of a number, with the sign of the highest of them."""
    (to, a, at, count), kind = instruction.operands, instruction.name[-1]
    value, start, length = reader(a, kind), reader(at, "u32"), reader(count, "u32")
    bits = 8 * np.dtype(KINDS[kind][0]).itemsize

    def extracted(lanes: Lanes) -> Array:
        x, up = value(lanes), bits - start(lanes) - length(lanes)
        moved = x << up.astype(x.dtype)
        return np.asarray(moved >> (bits - length(lanes)).astype(x.dtype))

    return _put(instruction, to, kind, extracted)


def _permute(instruction: Instruction) -> Step:
    """`prmt`: four bytes of eight."""
    assert len(instruction.name) == 2, instruction.text  # one of the modes would stand there
    to, a, b, selector = instruction.operands
    low, high, chosen = (reader(each, "u32") for each in (a, b, selector))

    def permuted(lanes: Lanes) -> Array:
        x = low(lanes).astype(np.uint64) | high(lanes).astype(np.uint64) << np.uint64(32)
        made = np.zeros(len(lanes), np.uint64)
        for byte in range(4):
            which = (chosen(lanes).astype(np.uint64) >> np.uint64(4 * byte)) & np.uint64(15)
            taken = (x >> (np.uint64(8) * (which & np.uint64(7)))) & np.uint64(255)
            sign = np.where(taken >= 128, np.uint64(255), np.uint64(0))
            made |= np.where(which >= 8, sign, taken) << np.uint64(8 * byte)
        return made

    return _put(instruction, to, "u32", permuted)


def _logic(instruction: Instruction) -> Step:
    """`lop3`: any function of three bits, by its table."""
    to, *given, table = instruction.operands
    readers = [reader(each, "u32") for each in given]
    assert hasattr(table, "bits")

    def combined(lanes: Lanes) -> Array:
        a, b, c = (read(lanes) for read in readers)
        made = np.zeros(len(lanes), np.uint32)
        for case in range(8):
            if table.bits >> case & 1:
                made |= (a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c)
        return made

    return _put(instruction, to, "u32", combined)


_SPECIAL: dict[str, Callable[[Instruction], Step | None]] = {
    "mov": _move,
    "setp": _compare,
    "selp": _select,
    "cvt": _convert,
    "bfe": _extract,
    "prmt": _permute,
    "lop3": _logic,
}
