"""PELA: a backbone of lower ranks, trained on beside the one that it was made of.

Each linear layer W [n, m] becomes two of rank r = floor(m n / (c (m + n))), a c-th of its entries:

    W = U S V^T,  W_1 = (V_r S_r^1/2)^T,  W_2 = U_r S_r^1/2,  y = W_2 W_1 x + b

Then all is trained for a while, the original being frozen: the loss of the task, and

    a mean_l |f_l - f_l'|^2 + b |z - z'|^2 + p mean_W (max |W_2 W_1 - W| - eps)^2

with the mean square of features f_l of every block and of logits z.  The paper's infinity norm is
the largest entry in its code, as here.  What comes out is a backbone of its own, in the names of
that code: the layer X is X.0 and X.1.

    python -P -m intaglio.models.pela BASE.pt --text FILE --out LOW.pt

Source: Guo et al. 2024, arXiv:2310.10700; github guoyang9/PELA.
"""

import argparse
import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError

from . import find, save
from .parts.language_layers import LanguageModel
from .training import Report, place
from .tuning import Draw, of_text

KEPT = ("lm_head",)
FEWEST = 10  # outputs that a layer has at least to be made of two


@dataclass(frozen=True, kw_only=True)
class Pela:
    """Which part of the entries is left (1 / `ratio`), and the terms of the loss."""

    ratio: float = 2.0
    features: float = 1.0
    logits: float = 0.0
    perturbation: float = 1.0
    slack: float = 1e-3
    steps: int = 300
    rate: float = 1e-3
    seed: int = 0

    def tune(self, module: LanguageModel, draw: Draw, report: Report | None = None) -> int:
        """Factor the layers of `module` in place and train it; how many were factored."""
        teacher = copy.deepcopy(module).eval().requires_grad_(requires_grad=False)
        made = factor(module, self.ratio)
        whole = {path: teacher.get_parameter(f"{path}.weight") for path in made}
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.AdamW(module.parameters(), lr=self.rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, max(1, self.steps), self.rate / 20
        )
        module.train()
        for step in range(self.steps):
            loss = self._loss(module, teacher, draw(generator))
            if self.perturbation:
                loss = loss + self.perturbation * self._moved(module, whole)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if report is not None and step % 50 == 0:
                report(step, loss.item())
        module.eval()
        return len(made)

    def _loss(self, module: LanguageModel, teacher: LanguageModel, rows: Tensor) -> Tensor:
        """The loss of the next token, and the distances of features and logits."""
        with features(module) as own:
            logits = module(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        if not self.features and not self.logits:
            return loss
        with torch.no_grad(), features(teacher) as theirs:
            wanted = teacher(rows[:, :-1])
        far = [F.mse_loss(a, b) for a, b in zip(own, theirs, strict=True)]
        loss = loss + self.features * torch.stack(far).mean()
        return loss + self.logits * F.mse_loss(logits, wanted)

    def _moved(self, module: nn.Module, whole: Mapping[str, Tensor]) -> Tensor:
        """How far the largest entries of products are from those that they stand for."""
        far = []
        for path, weight in whole.items():
            first, second = (module.get_parameter(f"{path}.{place}.weight") for place in (0, 1))
            far.append(((second @ first - weight).abs().max() - self.slack) ** 2)
        return torch.stack(far).mean()


@torch.no_grad()
def factor(module: nn.Module, ratio: float, kept: Collection[str] = KEPT) -> list[str]:
    """Make two of each linear layer in place, by singular values; the paths of those.

    Layers whose last name is among `kept` stay, and those of fewer than 10 outputs.

    Raises:
        SourceError: if a rank of 0 would be left.
    """
    made = []
    for path, layer in [*module.named_modules()]:
        last = path.rpartition(".")[2]
        if type(layer) is not nn.Linear or last in kept or layer.out_features < FEWEST:
            continue
        rows, columns = layer.weight.shape
        rank = int(rows * columns / (ratio * (rows + columns)))
        if rank < 1:
            most = rows * columns / (rows + columns)
            raise SourceError(
                f"{path} of {rows} outputs and {columns} inputs has no rank left at the ratio "
                f"{ratio:g}; at most {most:.3g} leaves one."
            )
        u, s, v = torch.linalg.svd(layer.weight.double(), full_matrices=False)
        root = s[:rank].sqrt()
        first = nn.Linear(columns, rank, bias=False)
        second = nn.Linear(rank, rows, bias=layer.bias is not None)
        first.weight.copy_(root[:, None] * v[:rank])
        second.weight.copy_(u[:, :rank] * root)
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
        module.set_submodule(path, nn.Sequential(first, second).to(layer.weight.dtype))
        made.append(path)
    return made


@contextmanager
def features(module: LanguageModel) -> Iterator[list[Tensor]]:
    """What each block gives, [B, T, hidden], of the calls inside."""
    seen: list[Tensor] = []

    def note(_: nn.Module, __: tuple[Tensor], made: Tensor) -> None:
        seen.append(made)

    hooks = [block.register_forward_hook(note) for block in module.layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def main() -> None:
    """Factor a checkpoint, train it on a text, and save it."""
    parser = argparse.ArgumentParser(prog="intaglio.models.pela", description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=place, required=True)
    for name in ("ratio", "features", "logits", "perturbation", "slack", "rate"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Pela, name))
    parser.add_argument("--steps", type=int, default=Pela.steps)
    given = vars(parser.parse_args())
    base, text, out = (given.pop(name) for name in ("base", "text", "out"))
    torch.set_num_threads(1)
    held = torch.load(base, weights_only=True)
    model = find(held["model"])
    config = model.configure(held["config"])
    module = model.build(config)
    module.load_state_dict(held["state_dict"])
    if not isinstance(module, LanguageModel):
        raise SourceError(f"{base} is no language model of blocks, whose features are known.")
    count = Pela(**given).tune(module, of_text(text.read_bytes()))
    save(out, held["model"], config, module)
    print(f"{count} layers factored and trained; {out} written")  # noqa: T201


if __name__ == "__main__":
    main()
