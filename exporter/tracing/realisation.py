"""A kernel of numbers as the response of a system with few states, with a bound on its error.

For k_0 .. k_{L-1} the smallest system x <- A x + b u, y = c x with c A^l b = k_l is read from the
singular values of the Hankel matrix H_ij = k_{i+j} (Ho and Kalman 1966; Kung 1978):

    H = U S V^T,  A = S^-1/2 U^T H' V S^-1/2,  b = S^1/2 V^T e_1,  c = e_1^T U S^1/2,

with H' one lag further on.  H is never written out: its products with vectors are convolutions, and
its largest singular values come from products with random ones (Halko et al. 2011,
arXiv:0909.4061, algorithm 4.4).  What is found is believed for no reason of theory: its response is
computed at all L positions from the numbers as fp32 holds them, and compared.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ORDERS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
MORE = 16  # random vectors beside those that are asked for
ERROR = 5e-6  # of the sum of a kernel's absolute values, at most
SMALL = 1.25e-7  # of that sum: singular values that do not count
CANCELLATION = 100.0  # how much larger the terms of a sum may be than what it gives
WORTH = 4  # positions that each state has to stand for

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Poles:
    """Re sum over m of weight ratio^l; complex, [*channels, terms] both."""

    weight: Tensor
    ratio: Tensor


@dataclass(frozen=True)
class Matrices:
    """read . matrix^l entry; [*channels, states, states] and [*channels, states]."""

    matrix: Tensor
    entry: Tensor
    read: Tensor


@dataclass(frozen=True)
class Realised:
    """A system for a table of `length` positions; `error` as a part of the kernels' sums."""

    system: Poles | Matrices
    length: int
    error: float

    @property
    def states(self) -> int:
        """Numbers that are carried for each channel."""
        if isinstance(self.system, Poles):
            return 2 * self.system.ratio.shape[-1]
        return self.system.entry.shape[-1]

    @property
    def form(self) -> str:
        """How they follow from token to token."""
        return "poles" if isinstance(self.system, Poles) else "mixed by a matrix"


def realise(table: Tensor) -> Realised | None:
    """A system for the kernels `table` [*channels, L], float64, None where none is small.

    Poles where their terms do not cancel, else the matrices themselves.
    """
    *channels, length = table.shape
    rows = table.reshape(-1, length).numpy()
    if length < WORTH or not np.isfinite(rows).all() or not rows.any():
        return None
    most = length // WORTH
    hankels: list[_Hankel] = []
    for row in rows:
        hankel = _Hankel.of(row, most, hankels[-1].order if hankels else 1)
        if hankel is None:
            return None
        hankels.append(hankel)
    first = max(hankel.order for hankel in hankels)
    for order in (first, *(n for n in ORDERS if first < n <= most)):
        systems = [hankel.system(order) for hankel in hankels]
        for system in (_poles(systems), Matrices(*map(_stacked, zip(*systems, strict=True)))):
            error = None if system is None else _error(rows, system)
            if system is not None and error is not None and error <= ERROR:
                return Realised(_shaped(system, channels), length, error)
    return None


System = tuple[Array, Array, Array]  # matrix, entry, read


@dataclass(frozen=True)
class _Hankel:
    """The largest singular values and vectors of H, and what H' is between these."""

    values: Array
    left: Array
    right: Array
    between: Array
    order: int

    @classmethod
    def of(cls, row: Array, most: int, guess: int) -> "_Hankel | None":
        """Of the kernel `row`, by ranks from `guess` on; None where more than `most` count."""
        scale = np.abs(row).sum()
        height = len(row) // 2
        width = len(row) - height
        ranks = {min(n, most) for n in (*ORDERS[5::2], ORDERS[-1])}
        for rank in sorted(rank for rank in ranks if rank >= guess):
            columns = min(rank + MORE, height)
            drawn = np.random.default_rng(0).standard_normal((width, columns))
            basis = np.linalg.qr(_times(row[:-1], drawn, height))[0]
            basis = np.linalg.qr(_times(row[:-1], basis, width))[0]
            basis = np.linalg.qr(_times(row[:-1], basis, height))[0]
            left, values, right = np.linalg.svd(
                _times(row[:-1], basis, width).T, full_matrices=False
            )
            small = np.flatnonzero(values <= SMALL * scale)
            if columns == height and not len(small):
                small = np.array([columns])
            if len(small) and small[0] <= rank:
                left = basis @ left
                between = left.T @ _times(row[1:], right.T, height)
                return cls(values, left[0], right[:, 0], between, max(int(small[0]), 1))
        return None

    def system(self, order: int) -> System:
        """The balanced system of so many states; those beyond what counts stay zero."""
        kept = min(order, int((self.values > 1e-15 * max(self.values[0], 1e-300)).sum()))
        matrix, entry, read = np.zeros((order, order)), np.zeros(order), np.zeros(order)
        root = np.sqrt(self.values[:kept])
        matrix[:kept, :kept] = self.between[:kept, :kept] / np.outer(root, root)
        entry[:kept], read[:kept] = root * self.right[:kept], root * self.left[:kept]
        return matrix, entry, read


def _times(row: Array, columns: Array, height: int) -> Array:
    """The Hankel matrix of `row`, of `height` rows, times `columns`."""
    size = 1 << int(np.ceil(np.log2(len(row) + len(columns))))
    turned = np.fft.rfft(columns[::-1], size, axis=0) * np.fft.rfft(row, size)[:, None]
    first = len(columns) - 1
    return np.asarray(np.fft.irfft(turned, size, axis=0)[first : first + height])


def _stacked(parts: tuple[Array, ...]) -> Tensor:
    return torch.from_numpy(np.stack(parts))


def _poles(systems: list[System]) -> Poles | None:
    """The systems in the coordinates of their eigenvectors, one of each conjugate pair."""
    found = []
    for matrix, entry, read in systems:
        ratio, vectors = np.linalg.eig(matrix)
        try:
            weight = (read @ vectors) * np.linalg.solve(vectors, entry.astype(complex))
        except np.linalg.LinAlgError:
            return None
        upper = ratio.imag >= 0
        found.append((np.where(ratio.imag > 0, 2, 1)[upper] * weight[upper], ratio[upper]))
    terms = max(len(weight) for weight, _ in found)
    padded = [[np.pad(part, (0, terms - len(part))) for part in pair] for pair in found]
    return Poles(*(_stacked(tuple(parts)) for parts in zip(*padded, strict=True)))


def _error(rows: Array, system: Poles | Matrices) -> float | None:
    """The largest error of a row as a part of its sum; None where rounding would add to it.

    The system is taken as fp32 holds it: its weights, and how a step differs from standing still.
    """
    worst = 0.0
    for index, row in enumerate(rows):
        if isinstance(system, Poles):
            found, terms = _response_of_poles(
                system.weight[index].numpy(), system.ratio[index].numpy(), len(row)
            )
        else:
            matrix, entry, read = system.matrix[index], system.entry[index], system.read[index]
            found, terms = _response(matrix.numpy(), entry.numpy(), read.numpy(), len(row))
        off, total = np.abs(found - row).sum(), np.abs(row).sum()
        if not off <= ERROR * total or not terms <= CANCELLATION * total:
            return None
        worst = max(worst, float(off / total) if total else 0.0)
    return worst


def _response_of_poles(weight: Array, ratio: Array, length: int) -> tuple[Array, float]:
    """The response at every lag, and the sum of the absolute values of all its terms."""
    weight = weight.astype(np.complex64).astype(complex)
    ratio = 1 + (ratio - 1).astype(np.complex64).astype(complex)
    terms = weight[:, None] * ratio[:, None] ** np.arange(length)
    return terms.real.sum(0), float(np.abs(terms).sum())


def _response(matrix: Array, entry: Array, read: Array, length: int) -> tuple[Array, float]:
    """The response at every lag, and the sum of the lengths of what reads and what is read."""
    still = np.eye(len(matrix))
    power = still + (matrix - still).astype(np.float32)
    reads = read.astype(np.float32).astype(float)[None]
    entry = entry.astype(np.float32).astype(float)
    while len(reads) < length:
        reads = np.concatenate((reads, reads @ power))
        power = power @ power
    reads = reads[:length]
    return reads @ entry, float(np.linalg.norm(reads, axis=1).sum() * np.linalg.norm(entry))


def _shaped(system: Poles | Matrices, channels: list[int]) -> Poles | Matrices:
    if isinstance(system, Poles):
        return Poles(*(x.reshape(*channels, -1) for x in (system.weight, system.ratio)))
    states = system.entry.shape[-1]
    matrix = system.matrix.reshape(*channels, states, states)
    return Matrices(matrix, *(x.reshape(*channels, states) for x in (system.entry, system.read)))
