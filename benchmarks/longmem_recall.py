"""LongMem reads what earlier segments said: accuracy over segments, with its bank and without.

    python benchmarks/longmem_recall.py [--quick] [--json]

A document gives each of 32 keys a value of its own, and its segments are pairs of a key and its
value, keys drawn at random.  A language model of two layers learns to repeat values within a
segment, and is frozen; the side network then learns on whole documents.  The engine reads new
documents: once with its bank, once with the bank reset before each segment.  A value can be known
where its key came before: `seen` is the share of those, the most that any model can reach.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from evidence import Row, run
from torch import Tensor

from intaglio.exporter.export import export
from intaglio.models import longmem
from intaglio.models.parts.recalled_pairs import SEGMENTS, Recall, documents
from intaglio.runtime.session import Session

DOCUMENTS = 64  # that are told, after training
RISE = 0.3  # of accuracy from the first segment to the last, at least


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
    module = longmem.build(longmem.RECALL)
    (Recall(steps=75, side=7) if quick else Recall()).train(module, None, None)
    module.requires_grad_(requires_grad=False)
    rows = documents(DOCUMENTS, torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as name:
        given = longmem.inputs(longmem.RECALL, 2, 0, torch.Generator())
        axes = longmem.axes(longmem.RECALL)
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
