"""Products on tensor cores: of a warp (`mma.sync`) and of four warps together (`wgmma`).

Operands are halves or tf32, 32 bytes of a row along k at once; sums are taken in float64 and stored
in fp32.
"""

from collections.abc import Sequence

import numpy as np

from .lanes import WARP, Lanes, Reader, Step, reader, several
from .memory import Array
from .program import Immediate, Instruction, Operand, Register
from .values import decode

WARPS = 4  # of a group
GROUP = WARPS * WARP
CHUNK = 16  # bytes of a row that lie together, however rows are swizzled
GROUPS, MEMBERS = np.divmod(np.arange(WARP), 4)  # how lanes hold the parts of matrices


def multiply(instruction: Instruction) -> Step | None:
    """What carries the instruction out; None if it is of another sort."""
    made = {"mma": _of_a_warp, "wgmma": _of_a_group}.get(instruction.name[0])
    return made and made(instruction)


def _of_a_warp(instruction: Instruction) -> Step:
    """`mma.sync` of m16n8: D = A B + C."""
    shape, kind = instruction.name[3], instruction.name[-2]
    d, a, b, c = instruction.operands
    assert shape == ("m16n8k8" if kind == "tf32" else "m16n8k16"), instruction.text
    assert instruction.name[6::3] == ("f32", "f32"), instruction.text
    assert instruction.guard is None, instruction.text
    left, right = _rows(a, kind), [_pieces(x, kind) for x in several(b)]
    added = [reader(x, "f32") for x in several(c)]

    def step(lanes: Lanes) -> None:
        # Register i of B holds column g and rows from 4 per i on, for lane 4 g + m.
        parts = [read(lanes) for read in right]
        per = parts[0].shape[-1]
        b = np.empty((len(lanes) // WARP, 8 * per, 8))
        for index, part in enumerate(parts):
            at = MEMBERS[:, None] * per + np.arange(per) + 4 * per * index
            b[:, at, GROUPS[:, None]] = part
        _store(lanes, d, left(lanes) @ b, [read(lanes) for read in added])

    return step


def _of_a_group(instruction: Instruction) -> Step:
    """`wgmma.mma_async` of m64nN: D = A B + D; B lies in shared memory, A there or in registers.

    Nothing is left pending: who reads a result before it was waited for is not found.
    """
    kind, (d, a, b, accumulates, *rest) = instruction.name[-1], instruction.operands
    scales = [1, 1] if kind == "tf32" else [1, 1, 0] if isinstance(a, tuple) else [1, 1, 0, 0]
    assert [x.bits for x in rest if isinstance(x, Immediate)] == scales, instruction.text
    assert instruction.guard is None, instruction.text
    columns = 2 * len(several(d))
    left = _rows(a, kind) if isinstance(a, tuple) else _in_shared(a, 16 * WARPS, kind)
    right, added = _in_shared(b, columns, kind), reader(accumulates, "pred")
    before = [reader(x, "f32") for x in several(d)]

    def step(lanes: Lanes) -> None:
        a, b = left(lanes), right(lanes).swapaxes(1, 2)
        a = a.reshape(len(b), 16 * WARPS, -1)
        chosen = added(lanes)
        last = [np.where(chosen, read(lanes), 0) for read in before]
        _store(lanes, d, (a @ b).reshape(-1, 16, columns), last)

    return step


def _rows(operand: Operand, kind: str) -> Reader:
    """A [warps, 16, k] in registers: the i-th holds row g + 8 (i % 2), columns from i // 2 on."""
    readers = [_pieces(x, kind) for x in several(operand)]

    def read(lanes: Lanes) -> Array:
        parts = [piece(lanes) for piece in readers]
        per = parts[0].shape[-1]
        made = np.empty((len(lanes) // WARP, 16, 8 * per))
        for index, part in enumerate(parts):
            at = MEMBERS[:, None] * per + np.arange(per) + 4 * per * (index // 2)
            made[:, (GROUPS + 8 * (index % 2))[:, None], at] = part
        return made

    return read


def _pieces(operand: Operand, kind: str) -> Reader:
    """The values [warps, 32, 1 or 2] of a register."""
    read = reader(operand, "b32")
    return lambda lanes: _values(np.broadcast_to(read(lanes), len(lanes)), kind).reshape(
        len(lanes) // WARP, WARP, -1
    )


def _values(words: Array, kind: str) -> Array:
    """What words of 32 bits hold; tensor cores do not read the last bits of tf32."""
    words = np.ascontiguousarray(words)
    if kind == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32)
    return decode(f"{kind}x2", words)


def _in_shared(operand: Operand, rows: int, kind: str) -> Reader:
    """A matrix [groups, rows, k] in shared memory, which all threads of a group describe alike."""
    descriptors = reader(operand, "u64")

    def read(lanes: Lanes) -> Array:
        told = descriptors(lanes).reshape(-1, GROUP)
        assert (told == told[:, :1]).all(), "threads of a group describe different matrices"
        return described(lanes, told[:, 0], rows, kind, np.arange(0, len(lanes), GROUP))

    return read


def described(lanes: Lanes, descriptors: Array, rows: int, kind: str, readers: Array) -> Array:
    """Matrices [n, rows, k] in shared memory, at the places that descriptors [n] of lanes [n] tell.

    See "Matrix Descriptor Format" and "Swizzling Modes" of the PTX ISA: rows of 128, 64 or 32
    bytes, eight after the other, whose chunks change places by the row.
    """
    told = descriptors[:, None]
    row, chunk = np.divmod(np.arange(rows * 2), 2)
    width = 256 >> (told >> np.uint64(62)).astype(np.int64)
    assert (width < 256).all(), "a matrix that is not swizzled"
    start = (told & np.uint64(0x3FFF)).astype(np.int64) << 4
    stride = (told >> np.uint64(32) & np.uint64(0x3FFF)).astype(np.int64) << 4
    place = start + row // 8 * stride + row % 8 * width + chunk * CHUNK
    place ^= (place >> 7 & width // CHUNK - 1) << 4
    data = lanes.load_shared(
        place.reshape(-1).astype(np.uint32), CHUNK, np.repeat(readers, rows * 2)
    )
    values = _values(data.view(np.uint32).reshape(-1), kind)
    return values.reshape(len(descriptors), rows, -1).astype(np.float64)


def _store(lanes: Lanes, operand: Operand, product: Array, added: Sequence[Array]) -> None:
    """D [warps, 16, columns]: registers 4j to 4j + 3 hold columns from 8j on, rows g and g + 8."""
    for index, register in enumerate(several(operand)):
        assert isinstance(register, Register)
        rows, columns = GROUPS + 8 * (index // 2 % 2), index // 4 * 8 + 2 * MEMBERS + index % 2
        lanes.put(register, "f32", product[:, rows, columns].reshape(-1) + added[index])
