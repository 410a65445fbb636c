"""A kernel's launch, block by block as far as blocks part ways, otherwise all in step."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from .arithmetic import arithmetic
from .lanes import Lanes, Step, reader, special
from .memory import Array, Global
from .products import multiply
from .program import NOWHERE, Address, Instruction, Program, Register, Special, parse
from .tensor_memory import tensor_memory
from .transfer import transfer
from .values import UNSIGNED

Grid = tuple[int, int, int]

MOST = 1 << 14  # lanes that go in step
IN_STEP = {("bar", "warp"), ("fence", "proxy"), ("wgmma", "fence"), ("wgmma", "commit_group"),
           ("wgmma", "wait_group")}  # fmt: skip


class UnknownInstructionError(Exception):
    """One that no kernel had when this was written."""


class Kernel:
    """One entry of a PTX text."""

    def __init__(self, ptx: str, entry: str) -> None:
        self.program: Program = parse(ptx, entry)

    def launch(
        self,
        grid: Grid,
        threads: int,
        shared: int,
        arguments: Sequence[int],
        memory: Global,
    ) -> None:
        """Run all blocks.

        Args:
            grid: blocks along each axis.
            threads: of a block.
            shared: bytes of shared memory that are added to those declared.
            arguments: addresses and whole numbers, one for each parameter.
            memory: of the device.

        Raises:
            AccessError: for what a GPU refuses or leaves to chance.
        """
        given = dict(zip(self.program.parameters, arguments, strict=True))
        steps = [_step(each, self.program, grid, given) for each in self.program.instructions]
        window = -(-(self.program.shared + shared) // 16) * 16
        blocks = np.arange(int(np.prod(grid)))
        many = max(1, MOST // threads)
        with np.errstate(all="ignore"):
            for first in range(0, len(blocks), many):
                group = blocks[first : first + many]
                waiting = [Lanes(self.program, group, threads, window, memory)]
                while waiting:
                    waiting.extend(self._run(waiting.pop(), steps))

    def _run(self, lanes: Lanes, steps: Sequence[Step | None]) -> list[Lanes]:
        """Go on until all blocks have returned, or part ways: then the two parts."""
        instructions, labels = self.program.instructions, self.program.labels
        while lanes.at < len(steps):
            if lanes.at == lanes.join:
                lanes.active, lanes.join = None, NOWHERE
            instruction, step = instructions[lanes.at], steps[lanes.at]
            lanes.at += 1
            if step is not None:
                try:
                    step(lanes)
                except AssertionError as error:
                    error.add_note(f"at: {instruction.text}")
                    raise
                continue
            if instruction.name[0] == "ret":
                assert instruction.guard is None, instruction.text
                assert lanes.active is None, "threads that others never meet again"
                break
            (label,) = instruction.operands
            to = labels[str(label)]
            taken = _taken(lanes, instruction)
            by_block = taken.reshape(len(lanes.blocks), -1)
            if taken.all():
                assert to != NOWHERE, f"never comes to an end: {instruction.text}"
                lanes.at = to
            elif (by_block != by_block[:, :1]).any():
                # Some threads wait there until the others of their block have come, too.
                assert lanes.active is None, f"threads of a block part again: {instruction.text}"
                lanes.active, lanes.join = ~taken, to
            elif taken.any():
                left, right = lanes.part(by_block[:, 0]), lanes.part(~by_block[:, 0])
                left.at = to
                return [left, right]
        return []


def _taken(lanes: Lanes, instruction: Instruction) -> Array:
    """Whether each thread takes a branch; those that wait go along with the others."""
    if instruction.guard is None:
        return np.ones(len(lanes), bool)
    taken = np.broadcast_to(reader(instruction.guard, "pred")(lanes), len(lanes))
    return taken if lanes.active is None else taken | ~lanes.active


def _step(
    instruction: Instruction, program: Program, grid: Grid, arguments: Mapping[str, int]
) -> Step | None:
    """What carries an instruction out; None for what decides where to go on."""
    name, operands = instruction.name, instruction.operands
    if name[0] in {"bra", "ret"}:
        return None
    if name[:2] in {("bar", "sync"), ("barrier", "sync")}:
        assert instruction.guard is None
        return Lanes.barrier
    if name[:2] in IN_STEP:
        return _nothing
    if name[:2] == ("ld", "param") or (name[0] == "mov" and isinstance(operands[1], Special | str)):
        return _told(instruction, program, grid, arguments)
    made = (
        arithmetic(instruction)
        or transfer(instruction, program)
        or multiply(instruction)
        or tensor_memory(instruction, program)
    )
    if made is None:
        raise UnknownInstructionError(instruction.text)
    return made


def _told(
    instruction: Instruction, program: Program, grid: Grid, arguments: Mapping[str, int]
) -> Step:
    """A parameter, where shared memory lies, or where a thread is, into a register."""
    to, source = instruction.operands
    assert isinstance(to, Register)
    kind = f"b{8 * to.width}"
    if isinstance(source, Special):
        read = special(source, grid)
        return lambda lanes: lanes.put(to, kind, read(lanes))
    if isinstance(source, Address):
        value = arguments[str(source.base)] & (1 << 8 * to.width) - 1
    else:
        value = program.symbols[str(source)]
    constant = np.asarray(value, UNSIGNED[to.width])
    return lambda lanes: lanes.put(to, kind, constant)


def _nothing(lanes: Lanes) -> None:
    """Lanes are in step as it is."""


@cache
def kernel_of(ptx: str, entry: str) -> Kernel:
    """The kernel of a PTX text, read once."""
    return Kernel(ptx, entry)
