"""HiPPO: state-space models that hold the past as coefficients in a basis, and their step sizes.

With A and B of a basis, x' = A x + B u holds x_n(t) = integral of K_n(s) u(t - s) ds, where
K(s) = e^{sA} B are the functions of the basis times the measure under which it is orthogonal:

* ``legs``: Legendre polynomials of e^{-s}, under e^{-s}: all of the past, ever more coarsely;
* ``legt``: Legendre polynomials on a window of the last 2 units of time;
* ``fout``: a Fourier series on that window, its last entry beside the first.

A itself is not to be diagonalised where its eigenvectors are nearly parallel (`condition`); with
few columns P added it becomes normal, which is what S4 stores (`diagonal_plus_low_rank`).
Everything here is float64, on the processor.

Source: Gu et al. 2022, arXiv:2206.12037 (HTTYH), section 4 and appendix; arXiv:2206.11893 (S4D).
"""

import math
from typing import Any

import torch
from torch import Tensor

from intaglio.errors import SourceError

BASES = ("legs", "legt", "fout")
RANKS = {"legs": 1, "legt": 2, "fout": 1}
REAL: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
WINDOW = 2.0  # units of time that legt and fout look back


def transition(basis: str, states: int) -> tuple[Tensor, Tensor]:
    """A [N, N] and B [N] of a basis.

    Raises:
        SourceError: the basis is none of `BASES`, or `states` is odd for fout.
    """
    _check(basis, states)
    n = torch.arange(states, **REAL)
    root = (2 * n + 1).sqrt()
    if basis == "legs":
        A = -(torch.outer(root, root).tril(-1) + torch.diag(n + 1))
        return A, root
    if basis == "legt":
        signs = torch.where(n[:, None] < n, (-1.0) ** (n[:, None] - n), 1.0)
        return -torch.outer(root, root) * signs / 2, root / 2
    B = low_rank(basis, states)[0]
    turn = torch.zeros(states - 1, **REAL)
    turn[0::2] = math.pi * n[: states // 2]
    return torch.diag(turn, -1) - torch.diag(turn, 1) - torch.outer(B, B), B


def low_rank(basis: str, states: int) -> Tensor:
    """P [rank, N] with which A + P^T P is normal.

    Raises:
        SourceError: as `transition`.
    """
    _check(basis, states)
    n = torch.arange(states, **REAL)
    if basis == "legs":
        return (n + 0.5).sqrt()[None]
    if basis == "legt":
        root, even = (n + 0.5).sqrt(), n % 2 == 0
        return torch.stack((root * ~even, root * even))
    column = torch.zeros(states, **REAL)
    column[0::2] = math.sqrt(2)
    column[0] = 1.0
    return column[None]


def diagonal_plus_low_rank(basis: str, states: int) -> tuple[Tensor, Tensor, Tensor]:
    """A in other coordinates, diag(poles) - P P^*: poles [N/2], P [rank, N/2] and B [N/2].

    One of each conjugate pair is kept, that below the real axis.  A + P^T P differs from a
    multiple of the identity by a skew-symmetric matrix, so that its eigenvectors are unitary.

    Raises:
        SourceError: as `transition`, or `states` is odd.
    """
    A, B = transition(basis, states)
    P = low_rank(basis, states)
    if states % 2:
        raise SourceError(f"There are {states} states; conjugate pairs take an even number.")
    normal = A + P.mT @ P
    turn, vectors = torch.linalg.eigh(-1j * normal)
    half = states // 2
    turn, vectors = turn[:half], vectors[:, :half].clone()
    if turn[-1].abs() < 1e-6:  # a pair that does not turn: the first two states
        vectors[:, -1] = 0
        vectors[0, -1], vectors[1, -1] = 1 / math.sqrt(2), 1j / math.sqrt(2)
    poles = torch.complex(normal.diagonal().mean().expand(half), turn)
    into = vectors.mH
    return poles, (into @ P.mT.to(into)).mT, into @ B.to(into)


def diagonal_poles(kind: str, states: int) -> Tensor:
    """Poles [N/2] of S4D: ``lin``, ``inv``, ``legs`` (S4's without P) or ``real``.

    Raises:
        SourceError: another kind, or `states` is odd.
    """
    if states % 2:
        raise SourceError(f"There are {states} states; conjugate pairs take an even number.")
    n = torch.arange(states // 2, **REAL)
    half = torch.full_like(n, -0.5)
    if kind == "lin":
        return torch.complex(half, math.pi * n)
    if kind == "inv":
        return torch.complex(half, states / math.pi * (states / (2 * n + 1) - 1))
    if kind == "real":
        return torch.complex(-(n + 1), torch.zeros_like(n))
    if kind == "legs":
        return diagonal_plus_low_rank("legs", states)[0].conj().resolve_conj()
    raise SourceError(f"There are no poles {kind!r}; they are lin, inv, legs and real.")


def timescales(
    channels: int, shortest: float, longest: float, generator: torch.Generator
) -> Tensor:
    """Step sizes [channels], drawn evenly in their logarithm between two sizes."""
    span = math.log(longest) - math.log(shortest)
    drawn = torch.rand(channels, generator=generator, **REAL)
    return torch.exp(drawn * span + math.log(shortest))


def timescale(basis: str, tokens: float) -> float:
    """The step size with which a system of `basis` looks back `tokens` tokens.

    The memory of a system is 1 / dt tokens, of legt and fout their window of 2 / dt: dependencies
    over L tokens take a smallest step of the order of 1 / L.

    Raises:
        SourceError: the basis is none of `BASES`.
    """
    _check(basis, 2)
    return (1.0 if basis == "legs" else WINDOW) / tokens


def bilinear(A: Tensor, B: Tensor, dt: float) -> tuple[Tensor, Tensor]:
    """A [N, N] and B [N] of one token: (1 - dt/2 A)^-1 (1 + dt/2 A) and (1 - dt/2 A)^-1 dt B."""
    still = torch.eye(len(A), dtype=A.dtype)
    left = still - dt / 2 * A
    return torch.linalg.solve(left, still + dt / 2 * A), torch.linalg.solve(left, dt * B)


def zero_order_hold(A: Tensor, B: Tensor, dt: float) -> tuple[Tensor, Tensor]:
    """A [N, N] and B [N] of one token that holds its input: e^{dt A} and A^-1 (e^{dt A} - 1) B."""
    size = len(A)
    joint = torch.zeros(size + 1, size + 1, dtype=A.dtype)
    joint[:size, :size], joint[:size, size] = dt * A, dt * B
    found = torch.linalg.matrix_exp(joint)
    return found[:size, :size], found[:size, size]


def condition(A: Tensor) -> float:
    """How far from orthogonal the eigenvectors of A are: the condition number of their matrix."""
    return float(torch.linalg.cond(torch.linalg.eig(A).eigenvectors))


def _check(basis: str, states: int) -> None:
    if basis not in BASES:
        raise SourceError(f"There is no basis {basis!r}; they are {', '.join(BASES)}.")
    if basis == "fout" and states % 2:
        raise SourceError(f"fout has {states} states; waves come in pairs.")
