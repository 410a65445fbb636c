"""What several memories recall, against one state as large and one as cheap to update.

    python benchmarks/mom.py [--quick] [--json]

Associative recall without training: N random unit keys with random values are written by the delta
rule, into one state, into four of which a fixed random router picks one for each key, and into one
state as large as the four.  The share of keys whose nearest value is their own; means of 8 draws.
"""

from dataclasses import replace

import torch
from evidence import Row, run
from torch.nn import functional as F

from intaglio.ops import linear_attention

KEY, VALUE, MEMORIES = 32, 32, 4
COUNTS = (32, 64, 128)
DRAWS = 8


def measure(quick: bool) -> list[Row]:
    """A row for each number of keys and kind of memory."""
    torch.set_num_threads(1)
    draws = 2 if quick else DRAWS
    rows = []
    for count in COUNTS:
        single = _mean(count, KEY, 1, draws)
        several = _mean(count, KEY, MEMORIES, draws)
        large = _mean(count, KEY * MEMORIES, 1, draws)
        rows += [
            _row(count, f"one state of {KEY} x {VALUE}", single, KEY),
            replace(
                _row(count, f"{MEMORIES} memories of {KEY} x {VALUE}, one picked", several, KEY),
                target=f"> {single:.3f}",
                holds=several > single,
                against="one state as cheap to update",
            ),
            _row(count, f"one state of {KEY * MEMORIES} x {VALUE}", large, KEY * MEMORIES),
        ]
    return rows


def _row(count: int, name: str, value: float, key: int) -> Row:
    return Row(
        name=f"{count} keys: {name}",
        value=round(value, 3),
        unit="recalled",
        note=f"{key * VALUE} numbers of state change with each key",
    )


def _mean(count: int, size: int, memories: int, draws: int) -> float:
    return sum(_recalled(count, size, memories, draw) for draw in range(draws)) / draws


@torch.no_grad()
def _recalled(count: int, size: int, memories: int, seed: int) -> float:
    """The share of `count` keys of `size` entries that are read right."""
    generator = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(count, size, generator=generator), dim=-1)
    values = torch.randn(count, VALUE, generator=generator)
    router = torch.randn(size, memories, generator=generator)
    mask = F.one_hot((keys @ router).argmax(-1), memories).float()
    many = [x[None, :, None].expand(-1, -1, memories, -1).flatten(2) for x in (keys, values)]
    _, state = linear_attention(
        many[0],
        many[0],
        many[1],
        beta=mask[None],
        update_rule="delta",
        q_num_heads=memories,
        kv_num_heads=memories,
        scale=1.0,
    )
    read = torch.einsum("nk,mkv,nm->nv", keys, state[0], mask)
    nearest = torch.cdist(read, values).argmin(-1)
    return float((nearest == torch.arange(count)).float().mean())


if __name__ == "__main__":
    run(__doc__, measure)
