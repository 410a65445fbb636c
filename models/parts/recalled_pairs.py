"""Documents of keys and values, and how a model with a bank learns to recall them.

A document gives each of `KEYS` keys a value of its own, and its segments are pairs of a key and its
value, keys drawn at random.  The language model learns to repeat values within a segment, and is
frozen; the side network then learns on whole documents, segment by segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.models.training import OTHER, Report, refuse_start

KEYS, SEGMENTS, PAIRS, FEW = 32, 8, 16, 6
BANK = ("memory_keys", "memory_values", "memory_means", "memory_filled")


def documents(count: int, generator: torch.Generator) -> Tensor:
    """Tokens [count, segments, 2 * pairs]: keys from 0 on, values behind them."""
    values = torch.randint(KEYS, (count, KEYS), generator=generator) + KEYS
    keys = torch.randint(KEYS, (count, SEGMENTS * PAIRS), generator=generator)
    pairs = torch.stack((keys, values.gather(1, keys)), -1)
    return pairs.view(count, SEGMENTS, 2 * PAIRS)


def rows_of(count: int, generator: torch.Generator) -> Tensor:
    """Segments by themselves, whose keys are few, so that most come again."""
    values = torch.randint(KEYS, (count, KEYS), generator=generator) + KEYS
    few = torch.rand(count, KEYS, generator=generator).argsort(1)[:, :FEW]
    keys = few.gather(1, torch.randint(FEW, (count, PAIRS), generator=generator))
    return torch.stack((keys, values.gather(1, keys)), -1).flatten(1)


def value_loss(logits: Tensor, rows: Tensor) -> Tensor:
    """Of the values [B, pairs] behind the keys."""
    return F.cross_entropy(logits[:, ::2].flatten(0, 1), rows[:, 1::2].flatten())


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Trains the language model of a LongMem for `steps`, then its side network for `side`."""

    steps: int = 1500
    side: int = 150
    seed: int = 0
    unit: str = "nats per value"

    def train(self, module: nn.Module, report: Report | None, start: Path | None) -> str:
        """As `Training` says.

        Raises:
            SourceError: if there is a checkpoint to start from.
        """
        refuse_start(start)
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(self.seed)
        self._train_backbone(module, generator, report)
        self._train_side(module, generator, report)
        module.eval()
        return f"held-out loss {self.held_out(module):.4f} {self.unit}"

    @torch.no_grad()
    def held_out(self, module: nn.Module) -> float:
        """The loss of the values of new documents, over all their segments."""
        return _document_loss(module, documents(64, torch.Generator().manual_seed(OTHER))).item()

    def _train_backbone(
        self, module: Any, generator: torch.Generator, report: Report | None
    ) -> None:
        """The language model by itself, on segments."""
        parameters = [*module.backbone.parameters(), module.lm_head.weight]
        optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.95))
        for step in range(self.steps):
            rate = 2e-3 * min(1, (step + 1) / 100) * (1 - step / self.steps)
            rows = rows_of(64, generator)
            logits = F.linear(module.backbone(rows)[-1], module.lm_head.weight)
            loss = _learn(optimizer, rate, value_loss(logits, rows), parameters)
            if report is not None and step % 100 == 0:
                report(step, loss)

    def _train_side(self, module: Any, generator: torch.Generator, report: Report | None) -> None:
        """The side network beside the frozen model."""
        module.begin()
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.95))
        for step in range(self.side):
            rate = 3e-3 * min(1, (step + 1) / 20) * (1 - step / self.side)
            loss = _document_loss(module, documents(16, generator))
            found = _learn(optimizer, rate, loss, parameters)
            if report is not None and step % 25 == 0:
                report(self.steps + step, found)


def _document_loss(module: nn.Module, rows: Tensor) -> Tensor:
    losses, bank = [], module.empty_bank(len(rows))  # type: ignore[operator]
    for segment in rows.unbind(1):
        given = module(segment, **bank)
        losses.append(value_loss(given["logits"], segment))
        bank = {name: given[name].detach() for name in BANK}
    return torch.stack(losses).mean()


def _learn(
    optimizer: torch.optim.Optimizer, rate: float, loss: Tensor, parameters: Sequence[Tensor]
) -> float:
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return loss.item()
