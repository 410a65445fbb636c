"""Which parts of a block lose most by fewer channels, and which by lower ranks.

    python benchmarks/compression_parts.py [--quick] [--json]

Perplexity of the trained Llama checkpoint, as in `compression.py`, where only feed-forwards, only
queries and keys, or only values and their projection lose 30 % of their parameters.  Which way
loses less depends on the model: of the smaller checkpoint, of fewer steps, all parts are told.
"""

from collections.abc import Iterator
from statistics import fmean

import torch
from compression import RATIOS, SEEDS, perplexity
from evidence import Row, run
from low_bit_errors import CHECKPOINTS

RATIO = 0.3
OTHER = CHECKPOINTS / "llama_small.pt"
PARTS = {"feed-forwards": ("mlp", ["*mlp*"]), "queries and keys": ("qk", ["*q_proj", "*k_proj"]),
         "values and projection": ("vo", ["*v_proj", "*o_proj"])}  # fmt: skip


def measure(quick: bool) -> list[Row]:
    """Rows of perplexity by part and way; of feed-forwards alone if `quick`."""
    torch.set_num_threads(1)
    rows = [Row(name="dense: perplexity", value=perplexity("", 0)[0], unit="per byte")]
    for part, (module, layers) in list(PARTS.items())[: 1 if quick else None]:
        ways = {
            "MoDeGPT": f"modegpt:ratio={RATIO},modules=['{module}']",
            "singular values of weights": f"low-rank:ratio={RATIO},by='svd',layers={layers}",
            "low rank by outputs": f"low-rank:ratio={RATIO},layers={layers}",
        }
        for way, spec in ways.items():
            value, left = perplexity(spec, 0)
            note = f"{left:.3f} of their parameters"
            rows.append(Row(name=f"{part}, {way}", value=value, unit="per byte", note=note))
    return [*rows, *_of_another(quick)]


def _of_another(quick: bool) -> Iterator[Row]:
    """The smaller checkpoint, all parts of its blocks together."""
    dense = perplexity("", 0, OTHER)[0]
    yield Row(name="the smaller checkpoint, dense", value=dense, unit="per byte")
    seeds = SEEDS[:1] if quick else SEEDS
    for share in RATIOS[1:2] if quick else RATIOS:
        narrow = [perplexity(f"modegpt:ratio={share}", seed, OTHER) for seed in seeds]
        mean = fmean(value for value, _ in narrow)
        svd, left = perplexity(f"low-rank:ratio={share},by='svd'", 0, OTHER)
        for way, value, kept in (("MoDeGPT", mean, narrow[0][1]), ("SVD", svd, left)):
            name = f"the smaller checkpoint, {way}, {share:.0%}"
            note = f"{kept:.3f} of the layers' parameters"
            yield Row(name=name, value=value, unit="per byte", note=note)
        yield Row(
            name=f"the smaller checkpoint, excess of SVD : MoDeGPT, {share:.0%}",
            value=(svd - dense) / (mean - dense),
            unit="ratio",
        )


if __name__ == "__main__":
    run(__doc__, measure)
