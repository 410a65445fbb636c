"""Layers that solve: a loop with a tolerance, and derivatives by the implicit function theorem.

Of a problem with parameters t the solution x*(t) is where F(x, t) = 0; whatever found it, its
derivatives follow from F alone, with A = d_x F and B = -d_t F, A dx/dt = B:

    jvp: solve A s = B u                  vjp: solve A' w = v, then B' w

`Solver` has the three as methods, and a bundle as graphs: main takes t and where to begin, and
gives the solution, the iterations that each row took and the residual |T(x, t) - x| that was left;
a residual beyond the tolerance says that it did not converge.

Source: Blondel et al. 2021, arXiv:2105.15183; equilibrium layers: Bai et al. 2019,
arXiv:1909.01377.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.nn import functional as F

from intaglio.graphs import Graph

from .model import Model
from .parts import optimality
from .parts.optimality import Rate
from .training import Drawn

UNROLLED = 20  # steps of an equilibrium that training follows back
PROBLEMS = ("ridge", "lasso", "simplex", "equilibrium")


@dataclass(frozen=True, kw_only=True)
class Config:
    """`problem` is one of ridge, lasso, simplex and equilibrium; `size` counts what is solved for.

    `observations` are the rows of the data of ridge and lasso; `inputs` what an equilibrium layer
    is given.  The loop ends where no entry moves by more than `tolerance`, or after `cap` steps.
    """

    problem: str = "equilibrium"
    size: int = 8
    inputs: int = 4
    observations: int = 24
    tolerance: float = 1e-6
    cap: int = 500

    def __post_init__(self) -> None:
        if self.problem not in PROBLEMS:
            raise ValueError(f"problem is {self.problem!r}; it should be {', '.join(PROBLEMS)}")
        if self.tolerance <= 0:
            raise ValueError("the tolerance should be above 0")

    @property
    def parameters(self) -> int:
        """Entries of t: penalties of the entries, one penalty, a point, or the layer's input."""
        sizes = {"lasso": 1, "equilibrium": self.inputs}
        return sizes.get(self.problem, self.size)


class Solver(nn.Module):
    """Fixed points of a map T(x, t), for each row by itself."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def step(self, x: Tensor, t: Tensor) -> Tensor:
        """T(x [..., n], t [..., p]), of which the solution is a fixed point."""
        raise NotImplementedError

    def forward(self, t: Tensor, start: Tensor) -> dict[str, Tensor]:
        """Solve for t [B, p] from start [B, n]; a row that is done waits for the others."""
        tolerance, cap = self.config.tolerance, self.config.cap

        def going(residual: Tensor, steps: Tensor) -> Tensor:
            return (residual > tolerance) & (steps < cap)

        def condition(_x: Tensor, residual: Tensor, steps: Tensor) -> Tensor:
            return going(residual, steps).any()

        def body(x: Tensor, residual: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            new = self.step(x, t)
            moves = going(residual, steps)
            left = (new - x).abs().amax(-1)
            return (
                torch.where(moves[:, None], new, x),
                torch.where(moves, left, residual),
                steps + moves,
            )

        first = t.new_full(t.shape[:1], torch.inf)
        none = torch.zeros_like(first, dtype=torch.int64)
        x, residual, steps = while_loop(condition, body, (start.clone(), first, none))  # type: ignore[no-untyped-call]
        return {"solution": x, "iterations": steps, "residual": residual}

    def jvp(self, t: Tensor, solution: Tensor, tangent: Tensor) -> Tensor:
        """How the solution [B, n] moves with t [B, p] along tangent [B, p]."""
        a, b = self._jacobians(t, solution)
        return optimality.solve_linear(a, -(b @ tangent[..., None])[..., 0])

    def vjp(self, t: Tensor, solution: Tensor, cotangent: Tensor) -> Tensor:
        """The gradient by t [B, p] of cotangent [B, n] . solution."""
        a, b = self._jacobians(t, solution)
        w = optimality.solve_linear(a.mT, -cotangent)
        return (b.mT @ w[..., None])[..., 0]

    def _jacobians(self, t: Tensor, solution: Tensor) -> tuple[Tensor, Tensor]:
        """d_x F [B, n, n] and d_t F [B, n, p]."""
        condition = optimality.fixed_point(self.step)
        both: Callable[..., tuple[Tensor, Tensor]] = torch.func.vmap(
            torch.func.jacrev(condition, argnums=(0, 1))
        )
        return both(solution, t)


class Regression(Solver):
    """Least squares of the data, with a penalty: of squares (ridge) or of sizes (lasso).

    Every other entry of what the data were made with is zero.
    """

    design: Tensor
    observed: Tensor
    rate: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("design", torch.randn(config.observations, config.size))
        made_with = 3 * torch.randn(config.size) * (torch.arange(config.size) % 2)
        self.register_buffer("observed", self.design @ made_with + torch.randn(len(self.design)))
        largest = torch.linalg.matrix_norm(self.design, 2).square()
        self.register_buffer("rate", 1 / (largest / config.observations + 1))

    def _slope(self, x: Tensor, t: Tensor) -> Tensor:
        misfit = F.linear(x, self.design) - self.observed
        slope = misfit @ self.design / self.config.observations
        return slope if self.config.problem == "lasso" else slope + t.sigmoid() * x

    def step(self, x: Tensor, t: Tensor) -> Tensor:
        """A step of (proximal) gradient descent; penalties are sigmoid(t)."""
        if self.config.problem == "ridge":
            return optimality.gradient_step(self._slope, self.rate)(x, t)

        def prox(x: Tensor, t: Tensor, rate: Rate) -> Tensor:
            return optimality.shrink(x, rate * t.sigmoid())

        return optimality.proximal_gradient(self._slope, prox, self.rate)(x, t)


class Allocation(Solver):
    """The point of the simplex with the least |x - t|^2 / 2 + |Q x|^2 / 2."""

    coupling: Tensor
    rate: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("coupling", torch.randn(config.size, config.size) / config.size**0.5)
        largest = torch.linalg.matrix_norm(self.coupling, 2).square()
        self.register_buffer("rate", 1 / (1 + largest))

    def _slope(self, x: Tensor, t: Tensor) -> Tensor:
        return x - t + F.linear(x, self.coupling) @ self.coupling

    def step(self, x: Tensor, t: Tensor) -> Tensor:
        """A step of projected gradient descent."""
        project = optimality.onto_simplex
        return optimality.projected_gradient(self._slope, project, self.rate)(x, t)


class Equilibrium(Solver):
    """The hidden state that a layer tanh(W x + U t + b) leaves as it is."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.inner = nn.Linear(config.size, config.size)
        self.outer = nn.Linear(config.inputs, config.size, bias=False)
        with torch.no_grad():
            self.inner.weight.mul_(0.7 / torch.linalg.matrix_norm(self.inner.weight, 2))

    def step(self, x: Tensor, t: Tensor) -> Tensor:
        """The layer."""
        return torch.tanh(self.inner(x) + self.outer(t))


def build(config: Config) -> Solver:
    """The solver of `config`, freshly initialised."""
    kinds: dict[str, type[Solver]] = {
        "ridge": Regression,
        "lasso": Regression,
        "simplex": Allocation,
        "equilibrium": Equilibrium,
    }
    return kinds[config.problem](config)


def inputs(config: Config, batch: int, _time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters of `batch` problems, and points to begin from; there is no time."""
    drawn = torch.randn((batch, config.parameters), generator=generator)
    return {"t": drawn, "start": torch.zeros(batch, config.size)}


def axes(config: Config) -> dict[str, str]:
    """Rows alone are free."""
    return {"t": f"batchx{config.parameters}", "start": f"batchx{config.size}"}


def graphs(config: Config) -> dict[str, Graph]:
    """The solver, and its derivatives at a solution."""
    generator = torch.Generator().manual_seed(0)
    t, x = (
        torch.randn((2, size), generator=generator) for size in (config.parameters, config.size)
    )
    rows = {"t": axes(config)["t"], "solution": axes(config)["start"]}
    return {
        "main": Graph(inputs=inputs(config, 2, 0, generator), axes=axes(config)),
        "jvp": Graph("jvp", {"t": t, "solution": x, "tangent": t}, {**rows, "tangent": rows["t"]}),
        "vjp": Graph(
            "vjp", {"t": t, "solution": x, "cotangent": x}, {**rows, "cotangent": rows["solution"]}
        ),
    }


def _followed(module: nn.Module, batch: int, generator: torch.Generator) -> Tensor:
    """Of a wave that the first entry of an equilibrium should follow; the last steps are unrolled.

    A layer whose steps could part is held to less than that.
    """
    assert isinstance(module, Equilibrium)
    t = torch.randn((batch, module.config.inputs), generator=generator)
    x = torch.zeros(batch, module.config.size)
    with torch.no_grad():
        for _ in range(60):
            x = module.step(x, t)
    for _ in range(UNROLLED):
        x = module.step(x, t)
    wave = 0.6 * torch.sin(2 * t[:, 0]) * torch.cos(t[:, 1])
    largest = torch.linalg.matrix_norm(module.inner.weight, 2)
    return F.mse_loss(x[:, 0], wave) + F.relu(largest - 0.9)


IMPLICIT = Model(
    name="implicit",
    summary="Layers that solve, with derivatives by the implicit function theorem.",
    config=Config,
    build=build,
    inputs=inputs,
    axes=axes,
    graphs=graphs,
    presets={name: Config(problem=name) for name in PROBLEMS},
    recipe=Drawn(loss=_followed, unit="squared", steps=1200, rate=1e-2),
    source="arXiv:2105.15183",
)
