"""Instructions that move data: to and from memory, and within a warp."""

import numpy as np

from .lanes import WARP, Copy, Lanes, Step, address, chosen_of, reader, several
from .memory import Array
from .program import Immediate, Instruction, Program, Register

ROWS = 8  # of the matrices that a warp loads at once, and their columns of 16 bits


def transfer(instruction: Instruction, program: Program) -> Step | None:
    """What carries the instruction out; None if it is of another sort."""
    name = instruction.name
    if name[0] in {"ld", "st"} and name[1] in {"global", "shared"}:
        return (_load if name[0] == "ld" else _store)(instruction, program)
    if name[0] in {"ldmatrix", "stmatrix"}:
        return _matrices(instruction, program)
    if name[:2] == ("cp", "async"):
        return _copy(instruction, program)
    return _shuffle(instruction) if name[0] == "shfl" else None


def _load(instruction: Instruction, program: Program) -> Step:
    name, (to, source) = instruction.name, instruction.operands
    registers, where, active = several(to), address(source, program), chosen_of(instruction)
    kind, shared = name[-1], name[1] == "shared"
    width = int(kind[1:]) // 8

    def load(lanes: Lanes) -> None:
        chosen = active(lanes)
        at = where(lanes)[chosen]
        total = width * len(registers)
        if shared:
            data = lanes.load_shared(at, total, chosen)
        else:
            data = lanes.memory.load(at, total, lanes.who[chosen])
        values, mask = data.view(f"u{width}"), None
        if len(chosen) < len(lanes):
            mask = np.zeros(len(lanes), bool)
            mask[chosen] = True
            spread = np.zeros((len(lanes), len(registers)), values.dtype)
            spread[chosen] = values
            values = spread
        for index, register in enumerate(registers):
            assert isinstance(register, Register)
            lanes.put(register, kind, values[:, index], mask)

    return load


def _store(instruction: Instruction, program: Program) -> Step:
    name, (target, given) = instruction.name, instruction.operands
    where, active = address(target, program), chosen_of(instruction)
    readers = [reader(each, name[-1]) for each in several(given)]

    def store(lanes: Lanes) -> None:
        chosen = active(lanes)
        columns = [np.broadcast_to(read(lanes), len(lanes))[chosen] for read in readers]
        data = np.ascontiguousarray(np.stack(columns, -1)).view(np.uint8)
        at = where(lanes)[chosen]
        if name[1] == "shared":
            lanes.store_shared(at, data, chosen)
        else:
            lanes.memory.store(at, data, lanes.who[chosen])

    return store


def _copy(instruction: Instruction, program: Program) -> Step:
    """`cp.async`: what it copies is there once its group was waited for."""
    name, operands = instruction.name, instruction.operands
    if "commit_group" in name:
        return lambda lanes: lanes.pending.append([])
    if "wait_group" in name:
        (most,) = operands
        assert isinstance(most, Immediate)
        return lambda lanes: _wait(lanes, most.bits)
    assert name[2] in {"ca", "cg"}, instruction.text
    to, source = address(operands[0], program), address(operands[1], program)
    size = operands[2].bits if isinstance(operands[2], Immediate) else 0
    given = reader(operands[3], "u32") if len(operands) > 3 else None
    active = chosen_of(instruction)

    def copy(lanes: Lanes) -> None:
        chosen = active(lanes)
        data = np.zeros((len(lanes), size), np.uint8)
        mask = np.zeros(len(lanes), bool)
        mask[chosen] = True
        taken = np.full(len(lanes), size) if given is None else given(lanes)
        assert np.isin(taken, (0, size)).all(), "a copy of a part"
        some = np.flatnonzero(mask & (taken > 0))
        data[some] = lanes.memory.load(source(lanes)[some], size, lanes.who[some])
        offset = to(lanes)
        # The earliest that it may be written, so that who still reads what was there is found.
        lanes.store_shared(offset[chosen], np.full((len(chosen), size), 0xFF, np.uint8), chosen)
        lanes.pending[-1].append(Copy(mask, offset, data))

    return copy


def _wait(lanes: Lanes, most: int) -> None:
    """Wait until at most so many of the committed groups are pending."""
    done = max(0, len(lanes.pending) - 1 - most)
    for group in lanes.pending[:done]:
        for copy in group:
            chosen = np.flatnonzero(copy.mask)
            lanes.store_shared(copy.offset[chosen], copy.data[chosen], chosen)
    lanes.pending = lanes.pending[done:]


def _shuffle(instruction: Instruction) -> Step:
    """`shfl.sync`: each lane reads the register of another of its warp."""
    (to, *rest), mode = instruction.operands, instruction.name[2]
    also = rest.pop(0) if len(rest) == 5 else None
    value, by, limits = reader(rest[0], "b32"), reader(rest[1], "u32"), reader(rest[2], "u32")
    assert isinstance(to, Register)
    assert instruction.guard is None

    def shuffle(lanes: Lanes) -> None:
        lane = lanes.thread % WARP
        b, c = by(lanes).astype(np.int64) & 31, limits(lanes).astype(np.int64)
        segment = c >> 8 & 31
        most, least = lane & segment | c & 31 & ~segment, lane & segment
        source = {
            "up": lane - b,
            "down": lane + b,
            "bfly": lane ^ b,
            "idx": least | b & ~segment,
        }[mode]
        inside = source >= most if mode == "up" else source <= most
        source = np.where(inside, source, lane)
        lanes.put(to, "b32", value(lanes)[np.arange(len(lanes)) - lane + source])
        if isinstance(also, Register):
            lanes.put(also, "pred", inside)

    return shuffle


def _matrices(instruction: Instruction, program: Program) -> Step:
    """`ldmatrix`, `stmatrix`: matrices of 8x8, whose rows the lanes of a warp point to."""
    name, operands = instruction.name, instruction.operands
    load = name[0] == "ldmatrix"
    count, transposed = int(name[4][1:]), "trans" in name
    where = address(operands[1] if load else operands[0], program)
    registers = several(operands[0] if load else operands[1])
    assert len(registers) == count
    assert instruction.guard is None, instruction.text
    # Lane 4r + c of a warp holds row r of each matrix, columns 2c and 2c + 1.
    row, column = np.divmod(np.arange(2 * WARP).reshape(WARP, 2), ROWS)

    def pointed(lanes: Lanes) -> tuple[Array, Array]:
        """The lanes that point to rows, and where to, matrix by matrix: [warps, count, 8]."""
        warps = np.arange(0, len(lanes), WARP)
        which = (warps[:, None] + np.arange(ROWS * count)).reshape(-1)
        return which, where(lanes)[which]

    def loaded(lanes: Lanes) -> None:
        which, at = pointed(lanes)
        data = lanes.load_shared(at, 2 * ROWS, which).view(np.uint16)
        matrices = data.reshape(-1, count, ROWS, ROWS)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        for index, register in enumerate(registers):
            assert isinstance(register, Register)
            pairs = np.ascontiguousarray(matrices[:, index][:, row, column])
            lanes.put(register, "b32", pairs.view(np.uint32).reshape(-1))

    def stored(lanes: Lanes) -> None:
        which, at = pointed(lanes)
        matrices = np.empty((len(lanes) // WARP, count, ROWS, ROWS), np.uint16)
        for index, read in enumerate(readers):
            pairs = np.ascontiguousarray(read(lanes)).view(np.uint16).reshape(-1, WARP, 2)
            matrices[:, index][:, row, column] = pairs
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        rows = np.ascontiguousarray(matrices).reshape(-1, ROWS)
        lanes.store_shared(at, rows.view(np.uint8), which)

    readers = [] if load else [reader(each, "b32") for each in registers]
    return loaded if load else stored
