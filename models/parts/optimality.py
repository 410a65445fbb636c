"""What holds at a solution x of a problem with parameters t, as functions of rows.

All take x [..., n] and t [..., p], and keep rows apart.  Conditions are F(x, t) = 0, and maps have
the solution as their fixed point, x = T(x, t), which gives the condition T(x, t) - x.  An objective
or its slope, constraints, a projection or a proximal operator make them, and a solver and its
derivatives need nothing else.

Source: Blondel et al. 2021, arXiv:2105.15183, table 1; the projection on the simplex: Duchi et al.
2008.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor], Tensor]  # a number for each row
Map = Callable[[Tensor, Tensor], Tensor]  # [..., n]
Rate = float | Tensor
Projection = Callable[[Tensor], Tensor]


def fixed_point(step: Map) -> Map:
    """T(x, t) - x, of a map T."""
    return lambda x, t: step(x, t) - x


def stationary(objective: Objective) -> Map:
    """The gradient of f by x, which is a slope for the maps below."""

    def condition(x: Tensor, t: Tensor) -> Tensor:
        gradient: Tensor = torch.func.grad(lambda x: objective(x, t).sum())(x)
        return gradient

    return condition


def gradient_step(slope: Map, rate: Rate) -> Map:
    """X - r grad f(x, t): its fixed points are where f is stationary."""
    return lambda x, t: x - rate * slope(x, t)


def projected_gradient(slope: Map, project: Projection, rate: Rate) -> Map:
    """Project(x - r grad f(x, t)): f on a convex set."""
    step = gradient_step(slope, rate)
    return lambda x, t: project(step(x, t))


def proximal_gradient(
    slope: Map, prox: Callable[[Tensor, Tensor, Rate], Tensor], rate: Rate
) -> Map:
    """Prox(x - r grad f(x, t), t, r): f beside what `prox` belongs to."""
    step = gradient_step(slope, rate)
    return lambda x, t: prox(step(x, t), t, rate)


def mirror_descent(slope: Map, rate: Rate) -> Map:
    """Softmax(log x - r grad f(x, t)): f on the simplex, in the geometry of the entropy."""
    return lambda x, t: (x.clamp_min(TINY).log() - rate * slope(x, t)).softmax(-1)


def newton(condition: Map) -> Map:
    """X - A^-1 F(x, t), A = d_x F: of one row of a batch [B, n] as of any other."""

    def step(x: Tensor, t: Tensor) -> Tensor:
        matrix = torch.func.vmap(torch.func.jacrev(condition))(x, t)
        return x - solve_linear(matrix, condition(x, t))

    return step


def kkt(objective: Objective, equal: Map, size: int) -> Map:
    """Of z = (x, v), x of `size` entries: (grad f + v . grad H, H), where H(x, t) = 0 is asked."""

    def condition(z: Tensor, t: Tensor) -> Tensor:
        x, dual = z[..., :size], z[..., size:]

        def lagrangian(x: Tensor, t: Tensor) -> Tensor:
            return objective(x, t) + (dual * equal(x, t)).sum(-1)

        return torch.cat((stationary(lagrangian)(x, t), equal(x, t)), -1)

    return condition


TINY = 1e-30


def onto_box(x: Tensor, lower: float = 0.0, upper: float = 1.0) -> Tensor:
    """The nearest point whose entries lie between two numbers."""
    return x.clamp(lower, upper)


def onto_ball(x: Tensor, radius: float = 1.0) -> Tensor:
    """The nearest point of length `radius` at most."""
    length = x.square().sum(-1, keepdim=True).clamp_min(TINY).sqrt()
    return x * (radius / length).clamp_max(1)


def onto_simplex(x: Tensor) -> Tensor:
    """The nearest point whose entries are at least 0 and sum to 1.

    (x - theta)_+ with theta the largest of (sum of the k largest entries - 1) / k over all k, which
    grows up to the k of the solution and falls from there (Held, Wolfe and Crowder, 1974).  The k
    largest are compared for rather than sorted, so that the derivative scatters nothing.
    """
    above = (x[..., None, :] >= x[..., :, None]).to(x.dtype)  # [..., i, j]: x_j is x_i or more
    theta = ((above * x[..., None, :]).sum(-1) - 1) / above.sum(-1)
    return (x - theta.amax(-1, keepdim=True)).clamp_min(0)


def shrink(x: Tensor, by: Tensor) -> Tensor:
    """Soft threshold: the proximal operator of `by` |x|."""
    return (x - by).clamp_min(0) - (-x - by).clamp_min(0)


def solve_linear(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution x [B, n] of matrix [B, n, n] x = right [B, n], by Gauss-Jordan with pivots.

    The rows of the identity choose and exchange rows, so that it is matrix arithmetic throughout.
    """
    size = matrix.shape[-1]
    a = torch.cat((matrix, right[..., None]), -1)
    identity = torch.eye(size, dtype=a.dtype, device=a.device)
    for k in range(size):
        below = a[:, :, k].abs()
        free = torch.arange(size, device=a.device) >= k
        pivot = torch.where(free, below, -1.0).argmax(-1)
        chosen = identity[pivot][..., None]  # [B, n, 1]
        row = (chosen * a).sum(1, keepdim=True)
        own = identity[k][:, None]
        a = a + (own - chosen) * (row - a[:, k : k + 1])
        row = row / row[..., k : k + 1]
        a = a - (a[..., k : k + 1] - own) * row
    return a[..., -1]
