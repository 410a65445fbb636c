"""Layers that solve: solutions, residuals, and derivatives by the implicit function theorem."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from intaglio.exporter.export import export
from intaglio.models.implicit import IMPLICIT, Config, Regression, Solver, graphs, inputs
from intaglio.models.parts import optimality
from intaglio.runtime.session import Session

SIZE = 3


def solver(problem: str, **values: float) -> Solver:
    torch.manual_seed(0)
    config = Config(problem=problem, size=SIZE, inputs=3, observations=9, **values)  # type: ignore[arg-type]
    module = IMPLICIT.build(config).eval().requires_grad_(requires_grad=False)
    assert isinstance(module, Solver)
    return module


def drawn(module: Solver, rows: int = 3) -> dict[str, Tensor]:
    return inputs(module.config, rows, 0, torch.Generator().manual_seed(1))


def plain(module: Solver, t: Tensor) -> Tensor:
    """The fixed point by a loop of PyTorch that never ends early."""
    x = torch.zeros(len(t), SIZE, dtype=t.dtype)
    for _ in range(2000):
        x = module.step(x, t)
    return x


def solved(module: Solver, t: np.ndarray) -> np.ndarray:
    """The solution for one t by another way in numpy: one entry, or one support, at a time."""
    w = {name: value.double().numpy() for name, value in module.state_dict().items()}
    x = np.zeros(SIZE)
    if module.config.problem == "equilibrium":
        for _ in range(500):
            inner = w["inner.weight"] @ x + w["inner.bias"]
            x = np.tanh(inner + w["outer.weight"] @ t)
    elif module.config.problem == "lasso":
        design, y, penalty = w["design"], w["observed"], 1 / (1 + np.exp(-t[0]))
        for _, i in itertools.product(range(500), range(SIZE)):
            rest = design[:, i] @ (y - design @ x + design[:, i] * x[i]) / len(y)
            size = design[:, i] @ design[:, i] / len(y)
            x[i] = np.sign(rest) * max(abs(rest) - penalty, 0) / size
    else:
        curve = np.eye(SIZE) + w["coupling"].T @ w["coupling"]
        least = np.inf
        for kept in (np.array(mask) for mask in itertools.product((False, True), repeat=SIZE)):
            if not kept.any():
                continue
            ones = np.ones(kept.sum())
            both = np.block([[curve[np.ix_(kept, kept)], ones[:, None]], [ones[None], 0]])
            point = np.zeros(SIZE)
            point[kept] = np.linalg.solve(both, np.append(t[kept], 1))[:-1]
            if (point >= 0).all() and (worth := point @ curve @ point / 2 - t @ point) < least:
                least, x = worth, point
    return x


def test_ridge_is_solved_in_closed_form() -> None:
    module = solver("ridge", tolerance=1e-12, cap=4000).double()
    assert isinstance(module, Regression)
    given = drawn(module)
    t = given["t"].double()
    found = module(t, given["start"].double())
    design, y = module.design.numpy(), module.observed.numpy()
    for row in range(len(t)):
        penalty = np.diag(1 / (1 + np.exp(-t[row].numpy())))
        gram = design.T @ design / len(y)
        wanted = np.linalg.solve(gram + penalty, design.T @ y / len(y))
        np.testing.assert_allclose(found["solution"][row], wanted, atol=1e-9)
        # d x / d t = -(G + P)^-1 P' x, with the derivative of the sigmoid
        slope = np.diag(penalty.diagonal() * (1 - penalty.diagonal()) * wanted)
        jacobian = -np.linalg.solve(gram + penalty, slope)
        u, v = np.arange(1.0, 4), np.array([1.0, -1, 2])
        moved = module.jvp(t, found["solution"], torch.from_numpy(u).expand(3, -1))
        back = module.vjp(t, found["solution"], torch.from_numpy(v).expand(3, -1))
        np.testing.assert_allclose(moved[row], jacobian @ u, atol=1e-8)
        np.testing.assert_allclose(back[row], jacobian.T @ v, atol=1e-8)


def test_lasso_keeps_some_entries_and_drops_others() -> None:
    """Where all are zero, a derivative of zeros would go unnoticed."""
    torch.manual_seed(0)
    module: Any = IMPLICIT.build(IMPLICIT.presets["lasso"]).eval()
    given = inputs(IMPLICIT.presets["lasso"], 3, 0, torch.Generator().manual_seed(1))
    found = module(**given)
    zero = found["solution"] == 0
    assert zero.any()
    assert (~zero).any(1).all()
    assert (found["residual"] <= module.config.tolerance).all()


@pytest.mark.parametrize("problem", ["lasso", "simplex", "equilibrium"])
def test_derivatives_are_those_of_finite_differences(problem: str) -> None:
    """Of solutions that no code of ours found."""
    module = solver(problem).double()
    t = drawn(module)["t"].double()
    x = plain(module, t)
    u = torch.randn(t.shape, generator=torch.Generator().manual_seed(2), dtype=t.dtype)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=t.dtype)
    h = 1e-5

    def each(t: Tensor) -> Tensor:
        return torch.from_numpy(np.array([solved(module, row) for row in t.numpy()]))

    torch.testing.assert_close(x, each(t), atol=1e-9, rtol=0)
    moved = (each(t + h * u) - each(t - h * u)) / (2 * h)
    torch.testing.assert_close(module.jvp(t, x, u), moved, atol=1e-6, rtol=1e-5)
    both = (module.vjp(t, x, v) * u).sum(-1)
    torch.testing.assert_close(both, (v * moved).sum(-1), atol=1e-6, rtol=1e-5)


def test_what_does_not_converge_says_so_by_its_residual() -> None:
    module = solver("ridge", cap=3)
    found = module(**drawn(module))
    assert (found["iterations"] == 3).all()
    assert (found["residual"] > module.config.tolerance).all()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Solver, Path]:
    """An equilibrium layer with its derivatives: three graphs."""
    module, path = solver("equilibrium"), tmp_path_factory.mktemp("implicit") / "bundle"
    export(module, path, graphs=graphs(module.config))
    return module, path


def test_solver_and_derivatives_are_graphs_of_one_bundle(bundle: tuple[Solver, Path]) -> None:
    module, path = bundle
    solve, jvp, vjp = (Session.load(path, graph=name) for name in ("main", "jvp", "vjp"))
    given = drawn(module)
    found = solve.step({name: value.numpy() for name, value in given.items()})
    assert (found["residual"] <= module.config.tolerance).all()
    assert (found["iterations"] < module.config.cap).all()
    exact = module.double()
    t, x = given["t"].double(), plain(exact, given["t"].double())
    np.testing.assert_allclose(found["solution"], x, atol=1e-5)
    u, v = t.flip(0), x.flip(0)
    (moved,) = jvp.step(_float32(t=t, solution=x, tangent=u)).values()
    (back,) = vjp.step(_float32(t=t, solution=x, cotangent=v)).values()
    np.testing.assert_allclose(moved, exact.jvp(t, x, u), atol=1e-5)
    np.testing.assert_allclose(back, exact.vjp(t, x, v), atol=1e-5)


def test_a_derivative_of_a_projection_holds_for_any_number_of_rows(tmp_path: Path) -> None:
    module = solver("simplex")
    export(module, tmp_path / "b", graphs={"main": graphs(module.config)["vjp"]}, verify=False)
    exact, t = module.double(), drawn(module, 5)["t"].double()
    x = plain(exact, t)
    v = x.flip(0)
    (back,) = Session.load(tmp_path / "b").step(_float32(t=t, solution=x, cotangent=v)).values()
    np.testing.assert_allclose(back, exact.vjp(t, x, v), atol=1e-5)


def test_a_row_goes_as_far_as_it_does_alone(bundle: tuple[Solver, Path]) -> None:
    """One that is done waits while others go on; a start at the solution takes one trip."""
    module, path = bundle
    session = Session.load(path)
    given = {name: value.numpy() for name, value in drawn(module.float()).items()}
    together = session.step(given)
    for row in range(3):
        alone = session.step({name: value[row : row + 1] for name, value in given.items()})
        assert alone["iterations"][0] == together["iterations"][row]
        np.testing.assert_allclose(alone["solution"][0], together["solution"][row], atol=1e-6)
    warm = session.step({"t": given["t"], "start": together["solution"]})
    assert (warm["iterations"] <= 2).all()


def _float32(**given: Tensor) -> dict[str, np.ndarray]:
    return {name: value.float().numpy() for name, value in given.items()}


def test_linear_systems_are_solved_with_pivots() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 6, 6, generator=generator, dtype=torch.float64)
    matrix[:, 0, 0] = 0
    right = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    wanted = torch.linalg.solve(matrix, right)
    torch.testing.assert_close(optimality.solve_linear(matrix, right), wanted)


def test_projections_are_the_nearest_points() -> None:
    """Against a search over many points of each set."""
    x = torch.tensor([[0.9, 0.8, -0.3], [0.2, 0.1, 0.3], [3.0, -1.0, 0.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20000, 3, generator=generator, dtype=torch.float64)
    simplex = noise.exp() ** 3
    sets = {
        optimality.onto_simplex: simplex / simplex.sum(-1, keepdim=True),
        optimality.onto_ball: noise / noise.norm(dim=-1, keepdim=True).clamp_min(1),
        optimality.onto_box: noise.sigmoid(),
    }
    for project, points in sets.items():
        nearest = project(x)
        torch.testing.assert_close(project(nearest), nearest)
        best = torch.cdist(x, points).min(-1).values
        assert ((x - nearest).norm(dim=-1) <= best + 1e-9).all()
        assert ((x - nearest).norm(dim=-1) >= best - 0.1).all()


def test_conditions_vanish_where_solutions_are() -> None:
    """A quadratic program with an equation, by KKT and Newton, and by mirror descent."""
    q = torch.diag(torch.tensor([2.0, 1.0, 4.0], dtype=torch.float64))

    def objective(x: Tensor, t: Tensor) -> Tensor:
        return (x @ q * x).sum(-1) / 2 + (t * x).sum(-1)

    def sums_to_one(x: Tensor, _t: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True) - 1

    t = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64)
    condition = optimality.kkt(objective, sums_to_one, 3)
    z = optimality.newton(condition)(torch.zeros(1, 4, dtype=torch.float64), t)
    assert condition(z, t).abs().max() < 1e-12
    step = optimality.mirror_descent(optimality.stationary(objective), 0.2)
    x = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    for _ in range(400):
        x = step(x, t)
    torch.testing.assert_close(x, z[:, :3])  # all entries are positive there
    assert optimality.fixed_point(step)(x, t).abs().max() < 1e-9
