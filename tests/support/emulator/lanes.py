"""Threads of several blocks of a kernel, in step: registers, shared memory, and who is who."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .memory import AccessError, Array, Global, Space, identity, require_aligned
from .program import Address, Immediate, Instruction, Negated, Operand, Program, Register, Special
from .values import UNSIGNED, constant, decoder, encode

WARP = 32
POISON = (1 << 64) - 1  # NaN of every float: what registers and shared memory start with
Reader = Callable[["Lanes"], Array]
Step = Callable[["Lanes"], None]


@dataclass
class Copy:
    """What `cp.async` will have written once it is waited for, for the threads of `mask`."""

    mask: Array
    offset: Array
    data: Array


class Lanes:
    """What the threads of some blocks know, each thread a lane.

    Attributes:
        block: of each lane: its number in the grid.
        warp: of each lane, within its block.
        shared: one window of `window` bytes after the other, a block's each.
        memory: of the device.
        at: the instruction that is next.
        pending: groups of copies that nobody waited for yet, the last of them still open.
        active: the lanes that go on while the others wait for them at `join`; None for all.
        join: the instruction at which they do.
        tensor: the memory of tensor cores, [blocks, rows, columns] of 32 bits.
    """

    def __init__(
        self, program: Program, blocks: Array, threads: int, window: int, memory: Global
    ) -> None:
        count = len(blocks)
        self.blocks, self.threads, self.window, self.memory = blocks, threads, window, memory
        content = np.full(count * window, POISON & 0xFF, np.uint8)
        self.shared = Space(content, first_wins=memory.first_wins)
        self.registers = [
            np.full(count * threads, POISON >> 8 * (8 - width) if width else False, dtype)
            for width, dtype in ((width, UNSIGNED.get(width, bool)) for width in program.registers)
        ]
        self.at = 0
        self.pending: list[list[Copy]] = [[]]
        self.active: Array | None = None
        self.join = -1
        self.tensor = np.empty((count, 0, 0), np.uint32)
        self._epoch = 0
        self._place()

    def _place(self) -> None:
        thread = np.arange(self.threads)
        self.block = np.repeat(self.blocks, self.threads)
        self.thread = np.tile(thread, len(self.blocks))
        self.warp = self.thread // WARP
        self._start = np.repeat(np.arange(len(self.blocks)) * self.window, self.threads)
        self.who = identity(self.block, self._epoch, self.warp)

    def __len__(self) -> int:
        return len(self.block)

    def barrier(self) -> None:
        """All threads of each block have come this far."""
        assert self.active is None, "a barrier that some threads do not come to"
        self._epoch += 1
        self.who = identity(self.block, self._epoch, self.warp)

    def part(self, kept: Array) -> "Lanes":
        """These lanes with the blocks alone that `kept` [blocks] tells to keep."""
        made: Lanes = object.__new__(Lanes)
        made.__dict__.update(self.__dict__)
        lanes = np.repeat(kept, self.threads)
        assert self.active is None, "blocks part where their threads have"
        made.blocks, made.shared = self.blocks[kept], self.shared.part(kept)
        made.tensor = self.tensor[kept]
        made.registers = [x[lanes] for x in self.registers]
        made.pending = [
            [Copy(copy.mask[lanes], copy.offset[lanes], copy.data[lanes]) for copy in group]
            for group in self.pending
        ]
        made._place()
        return made

    def places(self, offsets: Array, width: int) -> Array:
        """Where offsets [N] into the shared memory of each lane's block lie in all of it."""
        require_aligned(offsets, width)
        at = offsets.astype(np.int64)
        if (at + width > self.window).any():
            raise AccessError(f"byte {int(at.max())} of {self.window} of shared memory")
        return np.asarray(at)

    def load_shared(self, offsets: Array, width: int, lanes: Array) -> Array:
        """Bytes [n, width] at offsets [n] for the lanes of these indices."""
        at = self.places(offsets, width) + self._start[lanes]
        return self.shared.load(at, width, self.who[lanes])

    def store_shared(self, offsets: Array, values: Array, lanes: Array) -> None:
        """Write bytes [n, width] to offsets [n]."""
        at = self.places(offsets, values.shape[1]) + self._start[lanes]
        self.shared.store(at, values, self.who[lanes])

    def whole(self, offsets: Array, width: int, lanes: Array) -> Array:
        """Bytes [n, width] of what orders itself: no barrier has to lie between."""
        at = self.places(offsets, width) + self._start[lanes]
        return np.asarray(self.shared.content[at[:, None] + np.arange(width)])

    def put_whole(self, offsets: Array, values: Array, lanes: Array) -> None:
        """Write such bytes."""
        at = self.places(offsets, values.shape[1]) + self._start[lanes]
        self.shared.content[at[:, None] + np.arange(values.shape[1])] = values

    def put(self, register: Register, kind: str, values: Array, mask: Array | None = None) -> None:
        """Write values [N], or [N, 2] of a packed type, where the mask is set."""
        bits = encode(kind, values)
        if self.active is not None:
            mask = self.active if mask is None else mask & self.active
        if bits.shape != (len(self),):
            bits = np.full(len(self), bits)
        if register.width and bits.itemsize != register.width:
            bits = bits.astype(UNSIGNED[register.width])
        if mask is not None:
            bits = np.where(mask, bits, self.registers[register.index])
        self.registers[register.index] = np.ascontiguousarray(bits)


def reader(operand: Operand, kind: str) -> Reader:
    """What gives the values [N] of an operand, [N, 2] of a packed type; fp16 and bf16 as fp32."""
    if isinstance(operand, Immediate):
        value = constant(operand.bits, kind)
        return lambda lanes: value  # noqa: ARG005
    if isinstance(operand, Negated):
        chosen = reader(operand.register, "pred")
        return lambda lanes: ~chosen(lanes)
    assert isinstance(operand, Register), operand
    index, read = operand.index, decoder(kind, operand.width)
    return lambda lanes: read(lanes.registers[index])


def several(operand: Operand) -> tuple[Operand, ...]:
    """The operands between braces, or the one that has none."""
    return operand if isinstance(operand, tuple) else (operand,)


def guard_of(instruction: Instruction) -> Reader | None:
    """What gives the threads that carry an instruction out; None for all."""
    return None if instruction.guard is None else reader(instruction.guard, "pred")


def chosen_of(instruction: Instruction) -> Reader:
    """What gives the indices of the lanes that carry an instruction out."""
    guard = guard_of(instruction)

    def chosen(lanes: Lanes) -> Array:
        mask = np.ones(len(lanes), bool) if lanes.active is None else lanes.active
        return np.flatnonzero(mask if guard is None else mask & guard(lanes))

    return chosen


def address(operand: Operand, program: Program) -> Reader:
    """What gives the addresses [N] of `[register + offset]`, or of a symbol of shared memory."""
    assert isinstance(operand, Address), operand
    base, offset = operand.base, operand.offset
    if isinstance(base, Register):
        dtype = UNSIGNED[base.width]
        read = reader(base, f"u{8 * base.width}")
        moved = dtype(offset & (1 << 8 * base.width) - 1)
        return lambda lanes: read(lanes) + moved
    start = program.symbols[base] if isinstance(base, str) else base.bits
    return lambda lanes: np.full(len(lanes), start + offset, np.uint32)


def special(operand: Special, grid: tuple[int, int, int]) -> Reader:
    """What gives a special register: tid.x, ctaid, nctaid or laneid."""
    name, _, axis = operand.name.partition(".")
    which = "xyz".find(axis) if axis else 0
    divisor = int(np.prod(grid[:which], dtype=np.int64))
    if name == "ctaid":
        return lambda lanes: (lanes.block // divisor % grid[which]).astype(np.uint32)
    if name == "nctaid":
        return lambda lanes: np.full(len(lanes), grid[which], np.uint32)
    if name == "laneid":
        return lambda lanes: (lanes.thread % WARP).astype(np.uint32)
    assert (name, which) == ("tid", 0), operand
    return lambda lanes: lanes.thread.astype(np.uint32)
