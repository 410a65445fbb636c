"""Matrix groups by their polar decomposition: logarithms of elements, and samples.

Source: Mironenco & Forre 2024, arXiv:2310.11366, section 4; github.com/mirceamironenco/rgenn.
"""

import math

import torch
from torch import Tensor

GROUPS = {"gl": 4, "sl": 3}  # and their dimensions
NO_TURN = 1e-6  # of a sine; below it a rotation is none, so that no rounding makes it a whole one


def coordinates(elements: Tensor, group: str, alpha: float) -> Tensor:
    """Log P + log R of elements P R [..., 2, 2], as a vector of the Lie algebra [..., 3 or 4]."""
    values, vectors = torch.linalg.eigh(elements @ elements.transpose(-1, -2))
    half = values.log() / 2
    symmetric = (vectors * half.unsqueeze(-2)) @ vectors.transpose(-1, -2)
    inverse = (vectors * (-half).exp().unsqueeze(-2)) @ vectors.transpose(-1, -2)
    rotation = inverse @ elements
    sine = rotation[..., 1, 0]
    sine = torch.where(sine.abs() < NO_TURN, torch.zeros_like(sine), sine)
    angle = torch.atan2(sine, rotation[..., 0, 0]).remainder(2 * math.pi)
    # Of the basis, entries beside the diagonal have length 1 / sqrt(2 alpha).
    off = math.sqrt(2 * alpha)
    shear = symmetric[..., 0, 1] * off
    if group == "sl":
        return torch.stack((shear, angle, symmetric[..., 0, 0] * off), -1)
    first, second = (symmetric[..., i, i] * math.sqrt(alpha) for i in range(2))
    return torch.stack((first, shear, second, angle), -1)


def draw(
    group: str, count: int, alpha: float, spread: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Samples of a group [count, 2, 2] and their inverses: S^1/2 R, S = exp of a symmetric one.

    The coordinates of that have the variance `spread`; the angles of R are equidistant from -pi to
    pi, both ends included.
    """
    off = 1 / math.sqrt(2 * alpha)
    drawn = torch.randn(count, GROUPS[group] - 1, generator=generator) * math.sqrt(spread)
    if group == "sl":
        first, shear = (drawn * off).unbind(-1)
        second = -first
    else:
        first, second = (drawn[:, ::2] / math.sqrt(alpha)).unbind(-1)
        shear = drawn[:, 1] * off
    symmetric = torch.stack((first, shear, shear, second), -1).view(count, 2, 2)
    angles = torch.linspace(-math.pi, math.pi, count)
    turn = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1)
    turn = turn.view(count, 2, 2)
    return (
        torch.matrix_exp(symmetric / 2) @ turn,
        turn.transpose(-1, -2) @ torch.matrix_exp(-symmetric / 2),
    )
