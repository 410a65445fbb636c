"""Memory of a GPU that tells what a sanitizer would: bounds, alignment, and what nothing orders.

Accesses of two threads of a block are not ordered if the threads are of different warps and no
barrier of the block lies between; those of different blocks never are.
"""

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SECTOR = 32  # bytes that a GPU moves at once
CELL = 2  # bytes that are told apart; no kernel stores fewer
WARP_BITS, EPOCH_BITS = 8, 24
SEVERAL = (1 << WARP_BITS) - 1  # in the place of a warp
BLOCK = 1 << (WARP_BITS + EPOCH_BITS)  # identities of two blocks differ by as much, bit by bit
EVERYBODY = np.int64(2**63 - 1)  # threads of several blocks


class AccessError(AssertionError):
    """An access that a GPU refuses, or whose outcome is left to chance."""


def identity(block: Array, epoch: int, warp: Array) -> Array:
    """A number for each thread: of its block, of the barriers it has passed, and of its warp."""
    return (block.astype(np.int64) << (WARP_BITS + EPOCH_BITS)) | (epoch << WARP_BITS) | warp


class Space:
    """Bytes, and who wrote and who read them last.

    Attributes:
        content: the bytes.
        first_wins: see `store`.
    """

    def __init__(self, content: Array, *, first_wins: bool = False) -> None:
        self.content, self.first_wins = content, first_wins
        cells = -(-len(content) // CELL)
        self._written = np.full(cells, -1, np.int64)
        self._read = np.full(cells, -1, np.int64)

    def load(self, at: Array, width: int, who: Array) -> Array:
        """Bytes [N, width] at places [N], multiples of width, which the threads `who` [N] read."""
        cells, who, read = at // max(width, CELL), who[:, None], _by(self._read, width)
        if _unordered(_by(self._written, width)[cells], who).any():
            raise AccessError("a thread reads what another writes, and nothing orders them")
        last = read[cells]
        if (last != who).any():
            mine = read[cells] = _joined(last, who)
            found = read[cells]
            if (found != mine).any():  # the same place twice
                read[cells] = _joined(found, mine)
        return np.asarray(self._in(width)[at // width].view(np.uint8).reshape(-1, width))

    def store(self, at: Array, values: Array, who: Array) -> None:
        """Write bytes [N, width] to places [N], multiples of width.

        Threads of several warps may write the same to one place.  Of those that write to one at
        once, such as all that hold a sum, each by its own rounding, the last one wins or the first.
        """
        width = values.shape[1]
        cells, who, kept = at // max(width, CELL), who[:, None], self._in(width)
        written = _by(self._written, width)
        if _unordered(_by(self._read, width)[cells], who).any():
            raise AccessError("a thread writes what another reads, and nothing orders them")
        contested = _unordered(written[cells], who).any(1)
        before = kept[at // width].view(np.uint8).reshape(values.shape)
        if (before[contested] != values[contested]).any():
            raise AccessError("threads write different values, and nothing orders them")
        order = slice(None, None, -1 if self.first_wins else 1)
        kept[at[order] // width] = np.ascontiguousarray(values[order]).view(f"V{width}")[:, 0]
        written[cells] = who
        after = kept[at // width].view(np.uint8).reshape(values.shape)
        lost = (written[cells] ^ who >= BLOCK).any(1)
        if (after[lost] != values[lost]).any():
            raise AccessError("blocks write different values, and nothing orders them")

    def _in(self, width: int) -> Array:
        """The content, so many bytes at a time."""
        return self.content[: len(self.content) // width * width].view(f"V{width}")

    def part(self, kept: Array) -> Self:
        """Of a space of equal windows, those that `kept` tells to keep."""
        content = np.ascontiguousarray(_windows(self.content, kept))
        made = type(self)(content, first_wins=self.first_wins)
        made._written = _windows(self._written, kept)
        made._read = _windows(self._read, kept)
        return made


@dataclass
class Traffic:
    """What warps have asked for.

    Attributes:
        asked: bytes, each once for an instruction of a warp.
        moved: bytes of the sectors that they lie in.
    """

    asked: int = 0
    moved: int = 0

    def add(self, addresses: Array, width: int, who: Array) -> None:
        """Count an instruction; no access is wider than a sector."""
        apart = who * np.int64(0x9E3779B97F4A7C15 - (1 << 64))  # warps, far from each other
        at = addresses.astype(np.int64)
        self.asked += width * len(np.unique(apart ^ at))
        self.moved += SECTOR * len(np.unique(apart ^ at // SECTOR))


class Global:
    """The allocations of a device while a kernel runs."""

    def __init__(
        self,
        allocations: Mapping[int, int],
        *,
        first_wins: bool = False,
        traffic: Traffic | None = None,
    ) -> None:
        """Take bytes by address; `first_wins`: see `Space.store`; `traffic` is counted on."""
        self.first_wins, self._traffic = first_wins, traffic
        self._starts = np.array(sorted(allocations), np.uint64)
        self._spaces = [
            Space(np.frombuffer(_bytes_at(start, size), np.uint8), first_wins=first_wins)
            for start, size in sorted(allocations.items())
        ]

    def load(self, addresses: Array, width: int, who: Array) -> Array:
        """Bytes [N, width] at addresses [N]."""
        if self._traffic is not None:
            self._traffic.add(addresses, width, who)
        made = np.empty((len(addresses), width), np.uint8)
        for space, lanes, at in self._apart(addresses, width):
            made[lanes] = space.load(at, width, who[lanes])
        return made

    def store(self, addresses: Array, values: Array, who: Array) -> None:
        """Write bytes [N, width] to addresses [N]."""
        if self._traffic is not None:
            self._traffic.add(addresses, values.shape[1], who)
        for space, lanes, at in self._apart(addresses, values.shape[1]):
            space.store(at, values[lanes], who[lanes])

    def _apart(self, addresses: Array, width: int) -> Iterator[tuple[Space, Array, Array]]:
        """Threads by the allocation that they access, and where in it."""
        require_aligned(addresses, width)
        which = np.searchsorted(self._starts, addresses, side="right") - 1
        for index in np.unique(which):
            lanes = np.flatnonzero(which == index)
            at = (addresses[lanes] - self._starts[index]).astype(np.int64)
            size = len(self._spaces[index].content)
            if index < 0 or (at + width > size).any():
                raise AccessError(f"byte {int(at.max())} of an allocation of {size}")
            yield self._spaces[index], lanes, at


def _bytes_at(start: int, size: int) -> Any:
    return (ctypes.c_ubyte * size).from_address(start)


def require_aligned(addresses: Array, width: int) -> None:
    """Fail if an address is no multiple of what is accessed there."""
    if (addresses % addresses.dtype.type(width)).any():
        raise AccessError(f"{width} bytes at an address that is no multiple of them")


def _by(cells: Array, width: int) -> Array:
    """What is known of cells, of each so many bytes together: [places, cells of one]."""
    each = max(1, width // CELL)
    return cells[: len(cells) // each * each].reshape(-1, each)


def _windows(values: Array, kept: Array) -> Array:
    return np.asarray(values.reshape(len(kept), -1)[kept].reshape(-1))


def _unordered(last: Array, who: Array) -> Array:
    """Whether nothing orders the accesses of `last`, -1 for none, and of `who`."""
    apart = last ^ who
    return np.asarray(_of_other_warp(apart) | (apart >= BLOCK))


def _joined(last: Array, who: Array) -> Array:
    """Who has read since the last barrier: `last`, -1 for nobody, and `who`."""
    apart = last ^ who
    together = np.where(_of_other_warp(apart), who | SEVERAL, who)
    return np.asarray(np.where(apart >= BLOCK, EVERYBODY, together))


def _of_other_warp(apart: Array) -> Array:
    """Whether what differs between two identities is the warp alone: it is 1 to `SEVERAL`."""
    return np.asarray(apart.view(np.uint64) - np.uint64(1) < SEVERAL)  # 0 and -1 are large then
