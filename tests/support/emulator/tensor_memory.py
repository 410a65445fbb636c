"""`tcgen05`: products of one thread's asking, whose sums lie in a memory of their own.

What is asked for is done at once: barriers of memory (`mbarrier`) count, but nobody waits.
"""

import numpy as np

from .lanes import WARP, Lanes, Step, address, chosen_of, reader
from .products import described
from .program import Immediate, Instruction, Negated, Operand, Program, Register

ROWS = 128  # of the memory of a block
HALF = 64  # rows of a product of which each 16 lie at the start of 32
KINDS = {0: "f16", 1: "bf16", 2: "tf32"}  # of operands, as instruction descriptors number them
FP32 = 1


def tensor_memory(instruction: Instruction, program: Program) -> Step | None:
    """What carries the instruction out; None if it is of another sort."""
    name = instruction.name
    if name[:2] == ("elect", "sync"):
        return _elect(instruction)
    if name[0] == "mbarrier" or name[:2] == ("tcgen05", "commit"):
        return _barrier(instruction, program)
    if name[0] != "tcgen05":
        return None
    if name[1] in {"wait", "relinquish_alloc_permit", "dealloc"}:
        return lambda _: None
    if name[1] == "alloc":
        return _allocate(instruction, program)
    return _multiply(instruction) if name[1] == "mma" else _move(instruction)


def _elect(instruction: Instruction) -> Step:
    """One lane of each warp, the first."""
    _, elected, _ = instruction.operands
    assert isinstance(elected, Register)
    return lambda lanes: lanes.put(elected, "pred", lanes.thread % WARP == 0)


def _allocate(instruction: Instruction, program: Program) -> Step:
    """Columns of the memory, of which a block here asks for once: they start at 0."""
    place, columns = instruction.operands
    where, active = address(place, program), chosen_of(instruction)
    assert isinstance(columns, Immediate)

    def step(lanes: Lanes) -> None:
        chosen = active(lanes)
        lanes.tensor = np.full((len(lanes.blocks), ROWS, columns.bits), 0xFFFFFFFF, np.uint32)
        lanes.store_shared(where(lanes)[chosen], np.zeros((len(chosen), 4), np.uint8), chosen)

    return step


def _barrier(instruction: Instruction, program: Program) -> Step:
    """How often all who are expected have arrived, as a number in shared memory."""
    kind, operands = instruction.name[1], instruction.operands
    waits = kind == "try_wait"
    where, active = address(operands[1 if waits else 0], program), chosen_of(instruction)
    parity = reader(operands[2], "u32") if waits else None

    def step(lanes: Lanes) -> None:
        chosen = active(lanes)
        count = lanes.whole(where(lanes)[chosen], 8, chosen).view(np.uint64)
        if kind == "init":
            count[:] = 0
        elif kind == "commit":
            count[:] += np.uint64(1)
        if parity is not None:
            done = np.zeros(len(lanes), bool)
            done[chosen] = count[:, 0] % 2 != np.broadcast_to(parity(lanes), len(lanes))[chosen]
            assert done[chosen].all(), "waits for products that were not asked for"
            assert isinstance(operands[0], Register)
            lanes.put(operands[0], "pred", done)
        elif kind != "inval":
            lanes.put_whole(where(lanes)[chosen], count.view(np.uint8), chosen)

    return step


def _move(instruction: Instruction) -> Step:
    """`ld` and `st`: each warp its 32 rows, or of each 16 of them two parts of the columns."""
    name, operands = instruction.name, list(instruction.operands)
    registers = next(x for x in operands if isinstance(x, tuple))
    base = reader(_base(next(x for x in operands if not isinstance(x, tuple | Immediate))), "u32")
    (split,) = [x.bits for x in operands if isinstance(x, Immediate)] or [0]
    halves = name[4] == "16x32bx2"
    assert halves or name[4] == "32x32b", instruction.text
    readers, active = [reader(x, "b32") for x in registers], chosen_of(instruction)

    def step(lanes: Lanes) -> None:
        chosen = active(lanes)
        assert len(chosen) in (0, len(lanes)), "a part of the threads of a warp"
        if not len(chosen):
            return
        lane = lanes.thread % WARP
        row = (base(lanes) >> 16).astype(np.int64) + (lane % 16 if halves else lane)
        column = (base(lanes) & 0xFFFF).astype(np.int64) + (split * (lane >= 16) if halves else 0)
        block = np.repeat(np.arange(len(lanes.blocks)), lanes.threads)
        for index, register in enumerate(registers):
            if name[1] == "ld":
                assert isinstance(register, Register)
                lanes.put(register, "b32", lanes.tensor[block, row, column + index])
            else:
                lanes.tensor[block, row, column + index] = readers[index](lanes)

    return step


def _multiply(instruction: Instruction) -> Step:
    """D = A B or D + A B: A and B in shared memory, rows of both along k."""
    to, a, b, descriptor, accumulates = instruction.operands
    active, told = chosen_of(instruction), reader(descriptor, "u32")
    base, added = reader(_base(to), "u32"), reader(accumulates, "pred")
    operands = [reader(x, "u64") for x in (a, b)]

    def step(lanes: Lanes) -> None:
        chosen = active(lanes)
        assert np.array_equal(lanes.block[chosen], lanes.blocks), "not one thread of each block"
        (word,) = map(int, np.unique(told(lanes)[chosen]))
        kind, columns, rows = KINDS[word >> 7 & 7], (word >> 17 & 63) * 8, (word >> 24 & 31) * 16
        assert (word >> 4 & 3, word >> 10 & 7, word >> 13 & 15) == (FP32, word >> 7 & 7, 0)
        left, right = (
            described(lanes, read(lanes)[chosen], int(count), kind, chosen)
            for read, count in zip(operands, (rows, columns), strict=True)
        )
        product = left @ right.swapaxes(1, 2)
        row = np.arange(rows)
        if rows == HALF:
            row = row // 16 * 32 + row % 16
        start = int(base(lanes)[chosen[0]]) & 0xFFFF
        part = lanes.tensor[:, :, start : start + int(columns)]
        last = np.where(added(lanes)[chosen][:, None, None], part[:, row].view(np.float32), 0)
        part[:, row] = (product + last).astype(np.float32).view(np.uint32)

    return step


def _base(operand: Operand) -> Operand:
    """The register in brackets: rows in the upper half, columns in the lower."""
    assert not isinstance(operand, Negated)
    base = getattr(operand, "base", operand)
    assert isinstance(base, Register), operand
    return base
