"""Weight matching: the order of one model's units in which its weights are nearest to another's.

    maximise sum_w <A_w, P(B)_w>,  one permutation for each group of `exporter/coupled.py`

by coordinate ascent: with all other groups as they are, the best permutation of one is an
assignment problem with gains M[i, j] = sum over its members of what entry i of A and entry j of B
have in common (Ainsworth et al. 2022, arXiv:2209.04836).  Which t of the line between the models
is wanted makes no difference: the distance alone depends on the order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from intaglio.passes.analysis.coupling import Coupling, permuted
from intaglio.runtime.arrays import Array

from .assignment import assignment

SWEEPS = 100  # over all groups, at most
GAIN = 1e-12  # of what weights have in common: less is rounding

Tensors = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Weights in another order, the order of each group, and the sweeps that it took.

    Entry i of a group is what was entry ``orders[name][i]``.
    """

    weights: dict[str, Array]
    orders: dict[str, Array]
    sweeps: int


def match(fixed: Tensors, moved: Tensors, groups: Sequence[Coupling], seed: int = 0) -> Matched:
    """Put the units of `moved` in the order in which they are most like those of `fixed`.

    Args:
        fixed: weights by name.
        moved: those of another model of the same shapes.
        groups: what may be put in another order.
        seed: of the order in which groups are visited in a sweep.
    """
    random = np.random.default_rng(seed)
    found = {name: array.astype(np.float64) for name, array in moved.items()}
    wanted = {name: array.astype(np.float64) for name, array in fixed.items()}
    orders = {group.name: np.arange(group.size) for group in groups}
    sweeps, changed = 0, True
    while changed and sweeps < SWEEPS:
        sweeps, changed = sweeps + 1, False
        for index in random.permutation(len(groups)):
            group = groups[int(index)]
            order = assignment(_gains(wanted, found, group))
            if (order == np.arange(group.size)).all():
                continue
            made = permuted(found, [group], {group.name: order})
            before, after = (_common(wanted, each, group) for each in (found, made))
            if after - before > GAIN * max(abs(before), abs(after)):
                found, changed = made, True
                orders[group.name] = orders[group.name][order]
    weights = {name: found[name].astype(moved[name].dtype) for name in moved}
    return Matched(weights=weights, orders=orders, sweeps=sweeps)


def match_many(
    models: Sequence[Tensors], groups: Sequence[Coupling], seed: int = 0
) -> list[Matched]:
    """Put the units of several models in one order: each in turn is matched to the others' mean.

    The first model stays as it is.  It ends when no order changes.
    """
    identity = {group.name: np.arange(group.size) for group in groups}
    first = Matched(weights=dict(models[0]), orders=identity, sweeps=0)
    found = [first, *(match(models[0], each, groups, seed) for each in models[1:])]
    for turn in range(SWEEPS if len(models) > 2 else 0):
        changed = False
        for place in range(1, len(found)):
            others = [each.weights for at, each in enumerate(found) if at != place]
            again = match(mean(others), found[place].weights, groups, seed + turn + 1)
            if any((order != np.arange(len(order))).any() for order in again.orders.values()):
                changed = True
                found[place] = Matched(
                    weights=again.weights,
                    orders={n: o[again.orders[n]] for n, o in found[place].orders.items()},
                    sweeps=found[place].sweeps + again.sweeps,
                )
        if not changed:
            break
    return found


def mean(models: Sequence[Tensors], shares: Sequence[float] | None = None) -> dict[str, Array]:
    """The weights of models averaged, by equal shares or those given; integers are the first's."""
    parts = [1 / len(models)] * len(models) if shares is None else shares
    return {
        name: sum(
            part * each[name].astype(np.float64) for part, each in zip(parts, models, strict=True)
        ).astype(array.dtype)  # type: ignore[union-attr]
        if array.dtype.kind == "f"
        else array
        for name, array in models[0].items()
    }


def _gains(fixed: Tensors, moved: Tensors, group: Coupling) -> Array:
    total = np.zeros((group.size, group.size))
    for member in group.members:
        total += member.rows(fixed[member.name]) @ member.rows(moved[member.name]).T
    return total


def _common(fixed: Tensors, moved: Tensors, group: Coupling) -> float:
    return sum(float(np.vdot(fixed[name], moved[name])) for name in group.weights)
