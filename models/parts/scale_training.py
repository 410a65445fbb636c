"""How the tiny picture generator is trained: first an autoencoder of codes, then the transformer.

Pictures are the shapes of `_images`.  The encoder, which only training needs, is made here and left
out of the checkpoint.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.models.training import Report, refuse_start

from .drawn_shapes import draw

COMMITMENT = 0.25
WITHOUT = 0.1  # share of pictures whose class is not told


@dataclass(frozen=True, kw_only=True)
class Scales:
    """AdamW for both, in turn; the transformer learns the codes of the finished autoencoder.

    What was trained in single precision is left in half precision, which a checkpoint is kept in.
    """

    steps: int = 600
    later_steps: int = 700
    batch: int = 16
    rate: float = 2e-3
    seed: int = 0

    def train(self, module: Any, report: Report | None, start: object) -> str:
        """As `Training` says.

        Raises:
            SourceError: if there is a checkpoint to start from.
        """
        refuse_start(start)
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(self.seed)
        module.train()
        encoder, error = self._autoencode(module, generator, report)
        loss = self._transform(module, encoder, generator, report)
        module.eval().half()  # as it is kept: two bytes a weight
        return f"error of pictures {error:.4f}, {loss:.3f} nats per code"

    def _autoencode(
        self, module: Any, generator: torch.Generator, report: Report | None
    ) -> tuple[nn.Module, float]:
        side = module.vae.quantize.side
        factor = 2 ** (len(module.vae.decoder.up) - 1)
        channels = module.vae.quantize.embedding.embedding_dim
        encoder = _encoder(channels, factor)
        weights = [*encoder.parameters(), *module.vae.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=self.rate, weight_decay=0.0)
        error = 0.0
        for step in range(self.steps):
            _decay(optimizer, self.rate, step, self.steps)
            images, _ = draw(self.batch, side * factor, generator)
            features = encoder(images)
            _, found, loss = encode(module, features)
            passed = features + (found - features).detach()
            made = module.vae.decoder(module.vae.post_quant_conv(passed))
            off = F.mse_loss(made, images)
            _step(optimizer, off + loss)
            error += 0.05 * (off.item() - error) if step else off.item()
            if report is not None and step % 50 == 0:
                report(step, error)
            if step % 20 == 0 and step < self.steps // 2:
                _revive(module, features.detach(), generator)
        return encoder.eval(), error

    def _transform(
        self, module: Any, encoder: nn.Module, generator: torch.Generator, report: Report | None
    ) -> float:
        parts = [p for name, p in module.named_parameters() if not name.startswith("vae.")]
        optimizer = torch.optim.AdamW(parts, lr=self.rate, weight_decay=0.02)
        side = module.vae.quantize.side * 2 ** (len(module.vae.decoder.up) - 1)
        none, mean = module.class_emb.num_embeddings - 1, 0.0
        for step in range(self.later_steps):
            _decay(optimizer, self.rate, step, self.later_steps)
            images, labels = draw(self.batch, side, generator)
            with torch.no_grad():
                codes, _, _ = encode(module, encoder(images))
                tokens = inputs_of(module, codes)
            gone = torch.rand(len(labels), generator=generator) < WITHOUT
            logits = module(tokens, labels.masked_fill(gone, none))
            loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
            _step(optimizer, loss)
            mean += 0.05 * (loss.item() - mean) if step else loss.item()
            if report is not None and step % 50 == 0:
                report(step, mean)
        return mean


def encode(module: Any, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [B, L] of features [B, C, H, H] by scales, what they sum to, and the loss of it."""
    quantize = module.vae.quantize
    made, codes, loss = torch.zeros_like(features), [], features.new_zeros(())
    for places in scales_of(module):
        with torch.no_grad():
            rest = quantize.at_places(features - made, places)
            codes.append(torch.cdist(rest, quantize.embedding.weight[None]).argmin(-1))
        made = quantize.add(codes[-1], places, made)
        loss = loss + F.mse_loss(made, features.detach())
        loss = loss + COMMITMENT * F.mse_loss(made.detach(), features)
    return torch.cat(codes, dim=1), made, loss / len(codes)


def inputs_of(module: Any, codes: Tensor) -> Tensor:
    """Tokens [B, L, C] that the transformer takes before it scores codes [B, L]."""
    quantize, scales = module.vae.quantize, scales_of(module)
    side, channels = quantize.side, quantize.embedding.embedding_dim
    picture = torch.zeros(len(codes), channels, side, side)
    tokens = [torch.zeros(len(codes), len(scales[0]), channels)]
    for places, following in pairwise(scales):
        picture = quantize.add(codes[:, places], places, picture)
        tokens.append(quantize.at_places(picture, following))
    return torch.cat(tokens, dim=1)


def scales_of(module: Any) -> list[Tensor]:
    """The places of each scale."""
    counts = module.level.bincount().tolist()
    return list(torch.arange(len(module.level)).split(counts))  # type: ignore[no-untyped-call]


@torch.no_grad()
def _revive(module: Any, features: Tensor, generator: torch.Generator) -> None:
    """Give codes that are not taken the place of parts of pictures."""
    codes, made, _ = encode(module, features)
    table = module.vae.quantize.embedding.weight
    idle = torch.ones(len(table), dtype=torch.bool)
    idle[codes.flatten()] = False
    rest = torch.cat([(features - made).flatten(2).mT.reshape(-1, table.shape[1]),
                      features.flatten(2).mT.reshape(-1, table.shape[1])])  # fmt: skip
    picks = torch.randint(len(rest), (int(idle.sum()),), generator=generator)
    table[idle] = rest[picks]


def _encoder(channels: int, factor: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1), nn.SiLU()]
    while factor > 1:
        layers += [nn.Conv2d(32, 32, 4, stride=2, padding=1), nn.SiLU()]
        factor //= 2
    return nn.Sequential(*layers, nn.Conv2d(32, channels, 3, padding=1))


def _decay(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * min(1.0, (step + 1) / 30) * (1 - step / steps)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()
