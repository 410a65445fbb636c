"""Merging by weight matching: barrier, distance and alignment, with matching and without it.

Networks of three hidden layers, of three widths and three pairs of seeds, on points around several
centres of each of ten classes; one with batch norms; and three models in one.
"""

import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from evidence import Row, run
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.exporter.merge import MergeReport, merge

SMALLER, NEARER = 10.0, 0.3
CLASSES, CENTRES, FEATURES = 10, 3, 64


class Net(nn.Module):
    """Three hidden layers of `width`, with batch norms or without."""

    def __init__(self, width: int, *, norm: bool = False) -> None:
        super().__init__()
        sizes = [FEATURES, width, width, width]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(width) if norm else nn.Identity() for _ in self.hidden
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 10] of x [B, 64]."""
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            x = torch.relu(norm(layer(x)))
        logits: Tensor = self.head(x)
        return logits


def make(width: int = 64, *, norm: bool = False) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network and its example inputs."""
    return Net(width, norm=norm), {"x": torch.zeros(4, FEATURES)}


def points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points [count, 64] and their classes."""
    centres = 0.9 * torch.randn(
        CLASSES, CENTRES, FEATURES, generator=torch.Generator().manual_seed(1)
    )
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    kind = torch.randint(CENTRES, (count,), generator=generator)
    return centres[labels, kind] + 1.1 * torch.randn(count, FEATURES, generator=generator), labels


def train(width: int, seed: int, *, norm: bool, epochs: int) -> nn.Module:
    """A network of random weights of `seed`, trained."""
    torch.manual_seed(seed)
    module, (x, labels) = Net(width, norm=norm), points(4000, 2)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3, weight_decay=1e-4)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(100):  # type: ignore[no-untyped-call]
            loss = F.cross_entropy(module(x[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return module


def measure(quick: bool) -> list[Row]:
    """All rows."""
    torch.set_num_threads(1)
    widths, pairs, epochs = ((64,), 1, 5) if quick else ((64, 256, 512), 3, 20)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        x, labels = points(2000, 3)
        np.savez(folder / "data.npz", x=x.numpy(), labels=labels.numpy())
        for width in widths:
            rows += _rows(folder, f"width {width}", {"width": width}, pairs, epochs)
        norms = {"width": widths[0], "norm": True}
        rows += _rows(folder, f"width {widths[0]} with batch norms", norms, pairs, epochs)
    return rows


def _rows(folder: Path, name: str, config: dict[str, int], pairs: int, epochs: int) -> list[Row]:
    width, norm = config["width"], bool(config.get("norm"))
    paths = []
    for seed in range(max(pairs, 3)):
        paths.append(folder / f"{width}_{norm}_{seed}.pt")
        torch.save(train(width, seed, norm=norm, epochs=epochs).state_dict(), paths[-1])

    def merged(of: list[Path], **options: object) -> MergeReport:
        return merge(
            of,
            folder / "merged.pt",
            data=folder / "data.npz",
            force=True,
            model="merging:make",
            import_from=[Path(__file__).parent],
            config=config,
            **options,  # type: ignore[arg-type]
        )

    made = [merged([paths[i], paths[(i + 1) % 3]]) for i in range(pairs)]
    barriers = [(m.before.barrier, m.after.barrier) for m in made if m.before and m.after]
    smaller = statistics.median(a / max(b, 1e-9) for a, b in barriers)
    falls = statistics.mean(1 - b / a for m in made for a, b in m.distances)
    turned = [m.alignments[0] for m in made]
    before, after = (statistics.mean(each[i] for each in turned) for i in (0, 1))
    plain, best = (merged(paths[:3], matched=matched).losses for matched in (False, True))
    return [
        Row(name=f"{name}: barrier unmatched : matched", value=smaller, unit="x",
            target=f">= {SMALLER:g}", holds=smaller >= SMALLER,
            note=f"{statistics.mean(a for a, _ in barriers):.3f} to "
            f"{statistics.mean(b for _, b in barriers):.3f} nats"),
        Row(name=f"{name}: fall of the distance", value=falls, unit="of it",
            target=f"< {NEARER:g}", holds=falls < NEARER),
        Row(name=f"{name}: alignment of leading directions", value=after, unit="R",
            note=f"{before:.3f} unmatched"),
        Row(name=f"{name}: mean of three models, accuracy", value=best[-1][1] or 0.0, unit="of 1",
            note=f"{plain[-1][1]:.3f} unmatched; each by itself {plain[0][1]:.3f}"),
    ]  # fmt: skip


if __name__ == "__main__":
    run(__doc__, measure)
