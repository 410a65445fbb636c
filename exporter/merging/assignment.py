"""The assignment problem: which column each row takes so that the sum of what is taken is largest.

Shortest augmenting paths with potentials (Jonker & Volgenant 1987, Computing 38), one row after
the other; the columns of a step are updated at once.  O(n^3) at worst, in float64.
"""

import numpy as np

from intaglio.runtime.arrays import Array


def assignment(gain: Array) -> Array:
    """For each row of `gain` [n, n] its column, all different, with the largest sum of gains.

    Raises:
        ValueError: if a gain is not finite, or there are not as many rows as columns.
    """
    cost = -np.asarray(gain, np.float64)
    size = len(cost)
    if cost.shape != (size, size) or not np.isfinite(cost).all():
        raise ValueError("the gains should be a square of finite numbers")
    column_price = cost.min(0) if size else np.zeros(0)
    owner = np.full(size, -1)  # of each column
    taken = np.full(size, -1)  # by each row
    _take_cheapest(cost, column_price, owner, taken)
    for row in np.flatnonzero(taken < 0):
        _augment(cost, column_price, owner, taken, int(row))
    return taken


def _take_cheapest(cost: Array, price: Array, owner: Array, taken: Array) -> None:
    """Rows take columns of least reduced cost as long as these are free."""
    for row, reduced in enumerate(cost - price):
        column = int(reduced.argmin())
        if owner[column] < 0:
            owner[column], taken[row] = row, column


def _augment(cost: Array, price: Array, owner: Array, taken: Array, start: int) -> None:
    """Give the row `start` a column along the cheapest path of exchanges (Dijkstra's)."""
    size = len(cost)
    distance = np.full(size, np.inf)
    before = np.full(size, -1)  # the row from which a column is reached
    done = np.zeros(size, bool)
    row, reached = start, 0.0
    while True:
        here = cost[row] - price
        # What is taken is cheapest for its row, up to the base that this row's price would be.
        base = here[taken[row]] if taken[row] >= 0 else 0.0
        new = reached + here - base
        closer = ~done & (new < distance)
        distance[closer], before[closer] = new[closer], row
        column = int(np.where(done, np.inf, distance).argmin())
        reached = float(distance[column])
        if owner[column] < 0:
            break
        done[column] = True
        row = int(owner[column])
    price[done] -= reached - distance[done]
    while True:
        row = int(before[column])
        owner[column], taken[row], column = row, column, int(taken[row])
        if row == start:
            return
