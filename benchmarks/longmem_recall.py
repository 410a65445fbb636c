"""LongMem reads what earlier segments said: accuracy over segments, with its bank and without.

    python benchmarks/longmem_recall.py [--quick] [--json]

A document gives each of 32 keys a value of its own, and its segments are pairs of a key and its
value, keys drawn at random.  A language model of two layers learns to repeat values within a
segment, and is frozen; the side network then learns on whole documents.  The engine reads new
documents: once with its bank, once with the bank reset before each segment.  A value can be known
where its key came before: `seen` is the share of those, the most that any model can reach.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from evidence import Row, run
from torch import Tensor
from torch.nn import functional as F

from intaglio.exporter.export import export
from intaglio.models import longmem
from intaglio.runtime.session import Session

KEYS, SEGMENTS, PAIRS = 32, 8, 16
CONFIG = longmem.Config(
    vocab_size=2 * KEYS, hidden_size=64, num_heads=4, num_layers=2, retrieval_layer=1,
    segment=2 * PAIRS, capacity=2 * PAIRS * SEGMENTS, chunk=2, retrieved=16,
)  # fmt: skip
BACKBONE, SIDE = 1500, 150  # steps
DOCUMENTS = 64  # that are told, after training
RISE = 0.3  # of accuracy from the first segment to the last, at least


def documents(count: int, generator: torch.Generator) -> Tensor:
    """Tokens [count, segments, 2 * pairs]: keys from 0 on, values behind them."""
    values = torch.randint(KEYS, (count, KEYS), generator=generator) + KEYS
    keys = torch.randint(KEYS, (count, SEGMENTS * PAIRS), generator=generator)
    pairs = torch.stack((keys, values.gather(1, keys)), -1)
    return pairs.view(count, SEGMENTS, 2 * PAIRS)


def rows_of(count: int, generator: torch.Generator) -> Tensor:
    """Segments by themselves, whose keys are few, so that most come again."""
    values = torch.randint(KEYS, (count, KEYS), generator=generator) + KEYS
    few = torch.rand(count, KEYS, generator=generator).argsort(1)[:, :6]
    keys = few.gather(1, torch.randint(6, (count, PAIRS), generator=generator))
    return torch.stack((keys, values.gather(1, keys)), -1).flatten(1)


def train_backbone(module: longmem.LongMem, steps: int, generator: torch.Generator) -> None:
    """The language model by itself, on segments."""
    parameters = [*module.backbone.parameters(), module.lm_head.weight]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.95))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 100) * (1 - step / steps)
        rows = rows_of(64, generator)
        logits = F.linear(module.backbone(rows)[-1], module.lm_head.weight)
        _learn(optimizer, value_loss(logits, rows), parameters)


def train_side(module: longmem.LongMem, steps: int, generator: torch.Generator) -> None:
    """The side network beside the frozen model, on documents read segment by segment."""
    module.begin()
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.95))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        losses, bank = [], longmem.empty_bank(CONFIG, 16)
        for rows in documents(16, generator).unbind(1):
            given = module(rows, **bank)
            losses.append(value_loss(given["logits"], rows))
            bank = {name: given[name].detach() for name in longmem.BANK}
        _learn(optimizer, torch.stack(losses).mean(), parameters)


def value_loss(logits: Tensor, rows: Tensor) -> Tensor:
    """Of the values [B, pairs] behind the keys."""
    return F.cross_entropy(logits[:, ::2].flatten(0, 1), rows[:, 1::2].flatten())


def _learn(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Sequence[Tensor]) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def told(session: Session, rows: Tensor, *, bank: bool) -> list[float]:
    """The share of values that an engine tells, segment by segment."""
    session.state.reset()
    found = []
    for segment in rows.unbind(1):
        if not bank:
            session.state.reset()
        given = session.step({"input_ids": segment.numpy()})["logits"]
        right = given[:, ::2].argmax(-1) == segment[:, 1::2].numpy()
        found.append(float(right.mean()))
    return found


def seen(rows: Tensor) -> list[float]:
    """The share of keys that came before, by segment."""
    keys = rows[:, :, ::2].flatten(1).numpy()
    before = [[key in row[:place] for place, key in enumerate(row)] for row in keys]
    return [float(x) for x in np.mean(np.split(np.array(before), SEGMENTS, axis=1), axis=(1, 2))]


def measure(quick: bool) -> list[Row]:
    """Accuracy of each segment."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    module = longmem.build(CONFIG)
    train_backbone(module, BACKBONE // 20 if quick else BACKBONE, generator)
    train_side(module, SIDE // 20 if quick else SIDE, generator)
    module.eval().requires_grad_(requires_grad=False)
    rows = documents(DOCUMENTS, torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as name:
        given = longmem.inputs(CONFIG, 2, 0, generator)
        axes = longmem.axes(CONFIG)
        export(module, Path(name) / "b", inputs=given, axes=axes, steps=SEGMENTS)
        session = Session.load(Path(name) / "b")
        return list(_rows(told(session, rows, bank=True), told(session, rows, bank=False), rows))


def _rows(kept: list[float], reset: list[float], rows: Tensor) -> Iterator[Row]:
    for place, most in enumerate(seen(rows)):
        yield Row(
            name=f"segment {place + 1}: values told with the bank",
            value=kept[place],
            unit="of them",
            note=f"{reset[place]:.3f} without, {most:.3f} seen before",
        )
    gain = kept[-1] - reset[-1]
    yield Row(
        name="last segment, with the bank - without",
        value=gain,
        unit="of the values",
        target=f">= {RISE}",
        holds=gain >= RISE,
        note="by chance 1/32; the paper reads books, and gives no such figure",
    )


if __name__ == "__main__":
    run(__doc__, measure)
