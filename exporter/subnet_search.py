"""The search of LLM-QFA: which numbers of bits for the layers of a supernet, under a budget.

It evaluates random assignments, and the same bits for all layers; a regression of the losses tells
what each bit of each layer gains; further assignments spend the budget where most is gained for the
size (Yi et al. 2024, arXiv:2405.20202: 100 and 50).  These come in rounds, each of which learns of
the one before.  Evaluations of a round are independent jobs, each on one thread, so that its sums
are the same wherever it runs.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from torch import nn

from intaglio.errors import OptionError
from intaglio.jobs import Kept, Pool, Shared, run_all
from intaglio.models.supernet import BITS, SuperLinear, restore, set_bits, super_layers

from .merging.losses import Data, loss

PAIR = 64  # bits of a scale and an offset
ROUNDS = 5  # of evaluations around the best
FORM = re.compile(r"(\d+(?:\.\d+)?)(bits|MB|ms)")

Bits = tuple[int, ...]


@dataclass(frozen=True)
class Budget:
    """A limit in bits a weight, in megabytes, or in milliseconds of a step."""

    limit: float
    unit: str

    @classmethod
    def read(cls, text: str) -> "Budget":
        """Read ``3.1bits``, ``1.5MB`` or ``12ms``.

        Raises:
            OptionError: if it is none of them.
        """
        found = FORM.fullmatch(text)
        if found is None:
            raise OptionError(
                f"--budget {text}: give bits a weight, a size, or the time of a step, as 3.1bits, "
                "1.5MB or 12ms."
            )
        return cls(float(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.limit:g}{self.unit}"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """An assignment of bits to layers, its loss, its bits per weight, and bytes of the model.

    `ms` is about how long a step takes, where that was asked for.
    """

    bits: Bits
    loss: float
    mean: float
    bytes: int
    ms: float | None = None

    def costs(self, unit: str) -> float:
        """What it takes of a budget."""
        if unit == "ms":
            assert self.ms is not None
            return self.ms
        return self.mean if unit == "bits" else self.bytes / 1e6


class Sizes:
    """What assignments of bits to the layers of a supernet cost.

    Args:
        module: the supernet.
        times: milliseconds of a step with the same bits in all layers, by bits.
    """

    def __init__(self, module: nn.Module, times: Mapping[int, float] | None = None) -> None:
        layers = list(super_layers(module).values())
        self.weights = np.array([_weights(layer) for layer in layers])
        self._pairs = PAIR * sum(each.get_buffer(f"scale_{BITS[0]}").numel() for each in layers)
        own = {id(p) for each in layers for n, p in each.named_parameters() if n != "bias"}
        self._others = sum(p.numel() for p in module.parameters() if id(p) not in own)
        self._times = times

    def of(self, bits: Sequence[int], loss: float = 0.0) -> Tried:
        """An assignment with what it costs.

        A layer takes the share of a step that it has of all weights: steps read every weight once.
        """
        stored = int(self.weights @ np.asarray(bits)) + self._pairs
        ms = None
        if self._times is not None:
            ms = float(self.weights @ [self._times[b] for b in bits] / self.weights.sum())
        return Tried(
            bits=tuple(bits),
            loss=loss,
            mean=stored / int(self.weights.sum()),
            bytes=stored // 8 + 4 * self._others,
            ms=ms,
        )


def require_met(budget: Budget, sizes: Sizes) -> None:
    """Refuse a budget that is below what the fewest bits take.

    Raises:
        OptionError: if it is; the nearest is told.
    """
    least = sizes.of([min(BITS)] * len(sizes.weights))
    if least.costs(budget.unit) <= budget.limit:
        return
    takes = "" if least.ms is None else f", and takes {least.ms:.4g}ms"
    raise OptionError(
        f"No subnet has {budget}: the smallest, of {min(BITS)} bits in all layers, has "
        f"{least.mean:.3g}bits, {least.bytes / 1e6:.4g}MB with scales and offsets{takes}."
    )


def search(
    pool: Pool,
    task: Shared,
    sizes: Sizes,
    budget: Budget,
    *,
    seed: int,
    evaluations: tuple[int, int],
    kept: Kept | None,
    done: Callable[[int, int], None],
) -> list[Tried]:
    """All that was tried: one number of bits for all layers, random ones, and around the best.

    Args:
        pool: where evaluations run.
        task: a checkpoint of a supernet and the `Data` to judge by, shared.
        sizes: what assignments cost.
        budget: what is searched for.
        seed: of what is drawn.
        evaluations: how many at random, and around the best.
        kept: losses that are there already.
        done: is told how many of how many evaluations are done.
    """
    random = np.random.default_rng(seed)
    count, total = len(sizes.weights), sum(evaluations) + len(BITS)
    wanted: list[Bits] = [(bits,) * count for bits in BITS]
    for _ in range(evaluations[0]):
        mean = random.uniform(min(BITS), max(BITS))
        low = np.minimum(np.floor(mean), max(BITS) - 1)
        wanted.append(tuple(int(low + (u < mean - low)) for u in random.random(count)))

    def evaluated(some: Sequence[Bits], before: int) -> list[Tried]:
        losses = run_all(
            pool,
            evaluate,
            some,
            first=[task],
            kept=kept,
            done=lambda n, _: done(before + n, total),
        )
        return [sizes.of(bits, loss) for bits, loss in zip(some, losses, strict=True)]

    tried = evaluated(list(dict.fromkeys(wanted)), 0)
    for part in range(ROUNDS):
        share = evaluations[1] * (part + 1) // ROUNDS - evaluations[1] * part // ROUNDS
        gains = Gains(tried, sizes, random)
        known = {each.bits for each in tried}
        found = dict.fromkeys(_filled(sizes, gains.drawn(), budget) for _ in range(share))
        tried += evaluated([bits for bits in found if bits not in known], len(tried))
    return tried


def evaluate(task: Shared, bits: Sequence[int]) -> float:
    """The loss of a supernet at `bits`: a job."""
    module, data = task.made(_ready)
    for _ in set_bits(module, bits):
        pass
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return loss(module, data)[0]
    finally:
        torch.set_num_threads(threads)


def _ready(task: tuple[Mapping[str, Any], Data]) -> tuple[nn.Module, Data]:
    held, data = task
    return restore(held), data


class Gains:
    """What each further bit of each layer takes off the loss, as far as evaluations tell.

    Losses are taken for sums over layers (a linear model).  Before anything is known, a layer has
    the share of a uniform assignment's gain that it has of the weights, give or take as much; what
    the evaluations tell beyond it is the posterior of a Bayesian regression.

    Args:
        tried: what was evaluated, among it the same bits for all layers.
        sizes: what assignments cost.
        random: where draws come from.
    """

    def __init__(self, tried: Sequence[Tried], sizes: Sizes, random: np.random.Generator) -> None:
        self._random = random
        self._count = len(sizes.weights)
        uniform = {each.bits[0]: each.loss for each in tried if len(set(each.bits)) == 1}
        steps = [uniform[low] - uniform[high] for low, high in pairwise(BITS)]
        share = sizes.weights / sizes.weights.sum()
        before = np.concatenate([share * step for step in steps])
        width = np.concatenate([share * max(map(abs, steps))] * len(steps))
        x = np.array([np.concatenate([np.array(t.bits) >= b for b in BITS[1:]]) for t in tried])
        x = x.astype(np.float64)
        left = uniform[BITS[0]] - np.array([t.loss for t in tried]) - x @ before
        # Near the least that a linear model misses; what is smaller than it cannot be told.
        noise = max(float(np.std(left)) / 4, 1e-9)
        precision = x.T @ x / noise**2 + np.diag(1 / width**2)
        self._mean = before + np.linalg.solve(precision, x.T @ left) / noise**2
        self._root = np.linalg.cholesky(np.linalg.inv(precision))

    def drawn(self) -> Any:
        """One guess, as likely as it is to be right (Thompson 1933): [bits beyond 2, layers]."""
        draw = self._root @ self._random.standard_normal(len(self._mean))
        return (self._mean + draw).reshape(-1, self._count)


def _filled(sizes: Sizes, gains: Any, budget: Budget) -> Bits:
    """Bits for the layers that gain most for their size, as long as the budget has room."""
    bits = np.full(sizes.weights.shape, min(BITS))
    total = np.concatenate([np.zeros((1, gains.shape[1])), np.cumsum(gains, 0)])
    while True:
        best, taken = 0.0, None
        for layer, more in product(range(len(bits)), range(1, len(BITS))):
            raised = BITS[0] + more
            if raised <= bits[layer]:
                continue
            gain = total[more, layer] - total[bits[layer] - BITS[0], layer]
            rate = gain / (sizes.weights[layer] * (raised - bits[layer]))
            if rate > best and _fits(sizes, bits, layer, raised, budget):
                best, taken = rate, (layer, raised)
        if taken is None:
            return tuple(int(each) for each in bits)
        bits[taken[0]] = taken[1]


def _fits(sizes: Sizes, bits: Any, layer: int, raised: int, budget: Budget) -> bool:
    larger = bits.copy()
    larger[layer] = raised
    return sizes.of(larger).costs(budget.unit) <= budget.limit


def _weights(layer: SuperLinear) -> int:
    return layer.get_buffer(f"codes_{BITS[0]}").numel()
