"""Which parts of a block lose most by fewer channels, and which by lower ranks.

    python benchmarks/compression_parts.py [--quick] [--json]

Perplexity of the trained Llama checkpoint, as in `compression.py`, where only feed-forwards, only
queries and keys, or only values and their projection lose 30 % of their parameters.
"""

import torch
from compression import perplexity
from evidence import Row, run

RATIO = 0.3
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
    return rows


if __name__ == "__main__":
    run(__doc__, measure)
