"""What a supernet of 2, 3 and 4 bits gives: one tuning, and the best subnet of each budget.

    python benchmarks/budgets.py [--quick] [--json]

The trained Llama checkpoint of 0.7M parameters becomes a supernet with groups of 32 weights and is
tuned on its training text.  Every fourth row of text that it was not trained on is searched on,
with 100 evaluations at random and 50 around the best, the others judge.  At the size of the same
bits in all layers stands the best subnet that is no larger.  Bits count scales and offsets, 64 for
each group.
"""

import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from evidence import Row, run
from torch import nn

from intaglio.exporter.merging.losses import Data, loss
from intaglio.exporter.subnet import search_subnet
from intaglio.models import find, training
from intaglio.models.supernet import BITS, Supernet, restore, save, set_bits, super_layers
from intaglio.models.tuning import of_text
from intaglio.quiet import quiet

CHECKPOINT = Path(__file__).parents[1] / "models/checkpoints/llama.pt"
GROUP, STEPS, LENGTH = 32, 300, 256
ROWS, EVERY = 328, 4  # of text, and one in how many is searched on
EVALUATIONS = (100, 50)
BETWEEN = (4.5, 5.5)  # bits a weight, where there are no uniform ones
SPREAD, FOLDED = 3.0, 1e-5


def base() -> tuple[str, dict[str, object], nn.Module]:
    """The checkpoint's model, config and module."""
    held = torch.load(CHECKPOINT, weights_only=True)
    model = find(held["model"])
    module = model.build(model.configure(held["config"]))
    module.load_state_dict(held["state_dict"])
    return held["model"], held["config"], module.eval()


def make(folder: Path, steps: int, period: int | None = 100) -> list[float]:
    """Write ``super.pt`` and the text to search on, ``searched.npz``; average bits of each step."""
    torch.set_num_threads(1)
    name, config, module = base()
    text = bytes(training.training_text()[:1_000_000].tolist())
    means = Supernet(group=GROUP, steps=steps, period=period).tune(module, of_text(text))
    save(folder / "super.pt", name, config, module)
    np.savez(folder / "searched.npz", input_ids=_rows(searched=True).numpy())
    return means


def _rows(*, searched: bool) -> torch.Tensor:
    """Rows of text that is held out, [count, LENGTH + 1]."""
    text = training.held_out_text().long()
    chosen = [i for i in range(ROWS) if (i % EVERY == 0) is searched]
    return torch.stack([text[i * LENGTH : (i + 1) * LENGTH + 1] for i in chosen])


def measure(quick: bool) -> list[Row]:
    """Rows of losses at sizes, of the schedule, and of what folds."""
    evaluations = (10, 5) if quick else EVALUATIONS
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        means = make(folder, 20 if quick else STEPS)
        module = restore(torch.load(folder / "super.pt", weights_only=True))
        rows = _rows(searched=False)
        judge = Data([({"input_ids": p[:, :-1]}, p[:, 1:]) for p in torch.split(rows, 8)])
        look = partial(_loss, module, judge)
        found = [
            Row(name="float: loss", value=loss(base()[2], judge)[0], unit="nats per byte",
                note=f"{len(rows) * LENGTH:,} bytes that are held out"),
        ]  # fmt: skip
        count = len(super_layers(module))
        uniform = {bits: look([bits] * count) for bits in BITS}
        found += [
            Row(name=f"{bits} bits in all layers: loss", value=value, unit="nats per byte")
            for bits, value in uniform.items()
        ]
        same = {f"{bits + 64 / GROUP:g}": bits for bits in BITS[1:-1]}
        for budget in sorted({*same, *map(str, BETWEEN)}):
            made = search_subnet(
                folder / "super.pt",
                budget=f"{budget}bits",
                data=folder / "searched.npz",
                evaluations=evaluations,
                work=folder / "work",
            )
            value = look(made.taken.bits)
            limit = None if budget not in same else uniform[same[budget]]
            found.append(
                Row(
                    name=f"best subnet of {budget} bits a weight: loss",
                    value=value,
                    unit="nats per byte",
                    target=None if limit is None else f"< {limit:.4f}",
                    holds=None if limit is None else value < limit,
                    against=None if limit is None else f"{same[budget]} bits in all layers",
                    note=f"{made.taken.mean:.3f} bits, of {len(made.tried)} that were tried",
                )
            )
        return [*found, *_tuning(means, module)]


def _tuning(means: list[float], module: nn.Module) -> list[Row]:
    """Rows of the schedule's spread, and of the fold of adapters."""
    with tempfile.TemporaryDirectory() as name:
        drawn = make(Path(name), 20, None)
    spread = statistics.stdev(means) / statistics.stdev(drawn)
    worst = 0.0
    for layer in super_layers(module).values():
        x = torch.randn(64, layer.inputs, generator=torch.Generator().manual_seed(0))
        for bits in BITS:
            layer.bits = bits
            codes, scale, offset = (part.double() for part in layer.folded(bits))
            weight = codes * scale.repeat_interleave(layer.group, 1)[:, : layer.inputs]
            weight = weight + offset.repeat_interleave(layer.group, 1)[:, : layer.inputs]
            wanted = x.double() @ weight.T
            error = (layer(x) - wanted).abs().max() / wanted.abs().max()
            worst = max(worst, float(error))
    return [
        Row(
            name="spread of average bits: wave : uniform",
            value=spread,
            unit="ratio",
            target=f">= {SPREAD}",
            holds=spread >= SPREAD,
        ),
        Row(
            name="adapters in offsets, of all layers and bits",
            value=worst,
            unit="error",
            target=f"<= {FOLDED}",
            holds=worst <= FOLDED,
        ),
    ]


def _loss(module: nn.Module, data: Data, bits: tuple[int, ...] | list[int]) -> float:
    for _ in set_bits(module, bits):
        pass
    return loss(module, data)[0]


if __name__ == "__main__":
    run(__doc__, measure)
