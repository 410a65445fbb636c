"""Gradients, solvers and memories: what engines of these systems give, and what they cost.

* BIB: how far designs of an engine are from those of PyTorch in float64, after 20 steps of the
  descent with an adaptive balance and rate.
* Implicit: error of the derivative of ridge regression from a solver that stopped after a number of
  steps, by the implicit function theorem and by unrolling those steps.
* MLP Memory: the time of a network of a million parameters against exact search among a million
  keys of its width, for one state.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from evidence import Row, paired, ratio, run

from intaglio.exporter.export import export
from intaglio.models import bib, implicit, mlp_memory
from intaglio.runtime.design import Descent
from intaglio.runtime.session import Session

STEPS = 20


def designs(folder: Path) -> Row:
    """The descent by the engine beside the descent by the module in float64."""
    torch.manual_seed(0)
    config = bib.Config(num_layers=1)
    module = bib.build(config).eval()
    offline = 3 * torch.randn(config.offline, config.length, config.letters)
    with torch.no_grad():
        module.fit(module.embed(offline), torch.randn(config.offline))
    module.requires_grad_(requires_grad=False)
    given = bib.inputs(config, 2, 0, torch.Generator().manual_seed(1))
    export(module, folder / "bib", inputs=given, axes=bib.axes(config))
    session = Session.load(folder / "bib")
    start = bib.inputs(config, 16, 0, torch.Generator().manual_seed(2))["design"].numpy()
    engine = Descent(lambda z: session.step({"design": z}), start, adapt_rate=True)
    exact = module.double()

    def by_module(z: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in exact(torch.from_numpy(z)).items()}

    source = Descent(by_module, start.astype(np.float64), adapt_rate=True)
    for _ in zip(engine.run(STEPS), source.run(STEPS), strict=True):
        continue
    far = float(np.abs(engine.designs - source.designs).max())
    same = (engine.designs.argmax(-1) == source.designs.argmax(-1)).all()
    return Row(
        name="BIB: 16 designs after 20 steps, largest difference from float64",
        value=far,
        unit="of the table",
        target="<= 1e-2, same letters",
        holds=bool(far <= 1e-2 and same),
        against="PyTorch float64",
    )


def derivatives() -> list[Row]:
    """Of ridge regression by gradient descent that stops early, against the closed form."""
    torch.manual_seed(0)
    module = implicit.build(implicit.Config(problem="ridge", size=6, observations=30)).double()
    t = torch.randn(1, 6, dtype=torch.float64)

    def solved(t: torch.Tensor, steps: int) -> torch.Tensor:
        x = torch.zeros_like(t)
        for _ in range(steps):
            x = module.step(x, t)
        return x

    exact = torch.func.jacrev(lambda t: solved(t, 4000))(t)[0, :, 0]
    rows = []
    for steps in (5, 20, 40):
        x = solved(t, steps)
        columns = [module.jvp(t, x, e[None])[0] for e in torch.eye(6, dtype=torch.float64)]
        ours = (torch.stack(columns, 1) - exact).abs().max().item()
        unrolled = torch.func.jacrev(lambda t, n=steps: solved(t, n))(t)[0, :, 0]
        theirs = (unrolled - exact).abs().max().item()
        rows.append(
            Row(
                name=f"implicit: error of a derivative after {steps} steps : unrolled",
                value=ours / theirs,
                unit="ratio",
                target="< 1",
                holds=ours < theirs,
                against="unrolled",
                note=f"{ours:.1e} against {theirs:.1e}",
            )
        )
    return rows


def memory(folder: Path, quick: bool) -> list[Row]:
    """One state through the memory, and through an exact search among the states of a corpus."""
    config = mlp_memory.Config(vocab_size=800, hidden_size=128, intermediate_size=512)
    torch.manual_seed(0)
    module = mlp_memory.build(config).eval()
    export(module, folder / "memory", inputs=mlp_memory.inputs(config, 2, 5, torch.Generator()))
    session = Session.load(folder / "memory", threads=1)
    count = sum(weight.numel() for weight in module.parameters())
    generator = np.random.default_rng(0)
    state = generator.standard_normal((1, 1, 128)).astype(np.float32)
    rows = []
    for size in (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000):
        keys = generator.standard_normal((size, 128), dtype=np.float32)
        squares, values = (keys**2).sum(1), generator.integers(0, 800, size)
        search = searcher(keys, squares, values)
        theirs, ours = paired(
            lambda search=search: search(state[0, 0]),  # type: ignore[misc]
            lambda: session.step({"hidden": state}),
            20,
            clock=time.process_time,
        )
        faster = ratio(theirs, ours)
        rows.append(
            Row(
                name=f"MLP Memory of {count / 1e6:.1f}M parameters : exact search among {size:,} "
                "keys, in speed, one state",
                value=faster,
                unit="times",
                against="numpy, k = 1,024, processor time",
                note="the paper says 80 times, for a corpus of 500M tokens",
            )
        )
    return rows


def searcher(
    keys: np.ndarray, squares: np.ndarray, values: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """A kNN language model's distribution by exact search: 1,024 neighbours, temperature 16."""

    def search(state: np.ndarray) -> np.ndarray:
        distance = squares - 2 * keys @ state
        near = np.argpartition(distance, 1024)[:1024]
        weights = np.exp(-(distance[near] - distance[near].min()) / 16)
        return np.bincount(values[near], weights / weights.sum(), minlength=800)

    return search


def measure(quick: bool) -> list[Row]:
    """All rows."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [designs(folder), *derivatives(), *memory(folder, quick)]


if __name__ == "__main__":
    run(__doc__, measure)
