"""Interaction basis: which parameters are effective, and what fewer directions cost.

    python benchmarks/interaction_directions.py [--quick] [--json]

Of the feed-forwards of the trained Llama checkpoint, calibrated on rows of its training text:
parameters that are effective at most, by derivatives up to the next layer (local) and up to the
logits (global); then perplexity per byte on text held out where the two projections into each
feed-forward read few directions of their input: those of the interaction basis in both forms, of
the data alone (PCA), and singular values of each weight at the same rank (SVD).
"""

from collections.abc import Iterator
from typing import Any

import torch
from compression import perplexity, shrunk
from evidence import Row, run
from low_bit_accuracy import CHECKPOINT, _draw, _perplexity
from torch import Tensor, nn

from intaglio.exporter.sources.load import load_source

RANKS = (16, 32, 64)
INTO = "layers=['*mlp.gate_proj','*mlp.up_proj']"
WAYS = {
    "interaction basis, local": f"interaction-basis:rank={{}},{INTO}",
    "interaction basis, global": f"interaction-basis:rank={{}},form='global',{INTO}",
    "SVD of each weight": f"low-rank:rank={{}},by='svd',{INTO}",
}


def measure(quick: bool) -> list[Row]:
    """One rank if `quick`."""
    torch.set_num_threads(1)
    return [*_effective(), *_truncated(RANKS[1:2] if quick else RANKS)]


def _effective() -> Iterator[Row]:
    for form in ("local", "global"):
        _, details = shrunk(f"interaction-basis:tail=0,form='{form}',layers=['*mlp*']", 0)
        all_, effective = details["effective"]
        yield Row(
            name=f"effective parameters of feed-forwards, {form}",
            value=effective / all_,
            unit="of all, at most",
            note=f"{effective:,} of {all_:,}, below 1e-10 of the largest counts for nothing",
        )


def _truncated(ranks: tuple[int, ...]) -> Iterator[Row]:
    yield Row(name="dense: perplexity", value=perplexity("", 0)[0], unit="per byte")
    for rank in ranks:
        found = {way: perplexity(text.format(rank), 0)[0] for way, text in WAYS.items()}
        found["directions of the data alone (PCA)"] = _pca(rank)
        for way, value in found.items():
            yield Row(name=f"{way}, {rank} of 128: perplexity", value=value, unit="per byte")
        best = min(found["interaction basis, local"], found["interaction basis, global"])
        others = min(value for way, value in found.items() if "basis" not in way)
        yield Row(
            name=f"better form of the interaction basis : better of SVD and PCA, {rank}",
            value=best / others,
            unit="ratio of perplexities",
            target="< 1",
            holds=best < others,
        )


def _pca(rank: int) -> float:
    """Each feed-forward reads its input along the largest directions of its second moments."""
    module: Any = load_source(CHECKPOINT).module
    given: dict[nn.Module, Tensor] = {}

    def note(mlp: nn.Module, x: tuple[Tensor]) -> None:
        given[mlp] = x[0].flatten(0, 1).double()

    feed_forwards = [layer.mlp for layer in module.layers]
    hooks = [mlp.register_forward_pre_hook(note) for mlp in feed_forwards]
    with torch.no_grad():
        module(torch.from_numpy(_draw(0)))
    for hook in hooks:
        hook.remove()
    for mlp in feed_forwards:
        _, vectors = torch.linalg.eigh(given[mlp].T @ given[mlp])
        kept = vectors[:, -rank:]
        onto = (kept @ kept.T).float()
        for layer in (mlp.gate_proj, mlp.up_proj):
            layer.weight = nn.Parameter(layer.weight @ onto, requires_grad=False)
    return _perplexity(module)


if __name__ == "__main__":
    run(__doc__, measure)
