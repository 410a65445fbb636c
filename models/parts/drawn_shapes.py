"""Pictures of shapes, drawn by a formula: what the tiny vision models learn from.

Each class is one shape; where it stands, its size and its colours are random.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.models.training import Report, refuse_start

NAMES = ("disc", "square", "diamond", "ring", "plus", "cross", "frame", "stripes")
EDGE = 24.0  # how steep the edge of a shape is, in units of the picture
SIZES = (0.2, 0.35)  # half the extent of a shape, of the picture's
HELD_OUT = 1000


def draw(count: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures [count, 3, side, side] between -1 and 1, and their classes [count]."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    labels = torch.randint(len(NAMES), (count,), generator=generator)
    size = uniform(*SIZES, 1, 1)
    places = (torch.arange(side) + 0.5) / side
    margin = SIZES[1]
    y = places[None, :, None] - uniform(margin, 1 - margin, 1, 1)
    x = places[None, None, :] - uniform(margin, 1 - margin, 1, 1)
    inside = torch.stack(_depths(y / size, x / size), 1)[torch.arange(count), labels]
    mask = (inside * size * EDGE).sigmoid()[:, None]
    ink, paper = uniform(0.1, 1.0, 3, 1, 1), uniform(-1.0, -0.1, 3, 1, 1)
    return mask * ink + (1 - mask) * paper, labels


def _depths(y: Tensor, x: Tensor) -> list[Tensor]:
    """How far inside of each shape a place is, of coordinates in units of its size."""
    radius, widest = (x * x + y * y).sqrt(), torch.maximum(x.abs(), y.abs())
    thick = 0.3
    return [
        1 - radius,
        0.85 - widest,
        1 - x.abs() - y.abs(),
        thick - (radius - 0.75).abs(),
        torch.minimum(thick - torch.minimum(x.abs(), y.abs()), 1 - widest),
        torch.minimum(thick - torch.minimum((x - y).abs(), (x + y).abs()) / 1.4, 1 - widest),
        thick / 1.5 - (widest - 0.75).abs(),
        torch.minimum(thick / 1.5 - ((y + 2).remainder(0.8) - 0.4).abs(), 1 - widest),
    ]


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Trains a classifier [B, 3, side, side] -> [B, classes] by AdamW with a linear decay."""

    steps: int = 600
    batch: int = 32
    side: int = 32
    rate: float = 2e-3
    seed: int = 0

    def train(self, module: nn.Module, report: Report | None, start: object) -> str:
        """As `Training` says.

        Raises:
            SourceError: if there is a checkpoint to start from.
        """
        refuse_start(start)
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.AdamW(module.parameters(), lr=self.rate, weight_decay=0.05)
        module.train()
        for step in range(self.steps):
            for group in optimizer.param_groups:
                group["lr"] = self.rate * min(1.0, (step + 1) / 30) * (1 - step / self.steps)
            images, labels = draw(self.batch, self.side, generator)
            loss = F.cross_entropy(module(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if report is not None and step % 50 == 0:
                report(step, loss.item())
        module.eval()
        return f"held-out accuracy {accuracy(module, self.side):.3f}"


@torch.no_grad()
def accuracy(module: nn.Module, side: int) -> float:
    """Share of held-out pictures, never trained on, that are told."""
    images, labels = draw(HELD_OUT, side, torch.Generator().manual_seed(2**20))
    found = [module(part).argmax(-1) for part in images.reshape(-1, 100, *images.shape[1:])]
    return float((torch.cat(found) == labels).float().mean())
