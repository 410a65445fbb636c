"""How the tiny checkpoints are trained: next-byte prediction on Python's own standard library.

The text is that of the interpreter that runs the training, so losses reproduce on the same Python
version; `HELD_OUT` modules are never trained on.  One thread, fixed seeds.

    python -P -m intaglio.models llama --preset window --out llama_window.pt
"""

import argparse
import hashlib
import math
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import OptionError, SourceError
from intaglio.places import require_file

HELD_OUT = ("bisect", "colorsys", "fnmatch", "graphlib", "heapq", "shlex", "stat", "textwrap")
OTHER = 2**20  # seed of what is drawn and never trained on
WINDOW = 256  # bytes that a validation sequence holds


Report = Callable[[int, float], None]  # of a step, and the training loss there


class Training(Protocol):
    """How the tiny version of a model is trained, from random weights of `seed`."""

    @property
    def seed(self) -> int:
        """What the weights are drawn from."""

    def train(self, module: nn.Module, report: Report | None, start: Path | None) -> str:
        """Train `module` in place; a sentence that says what it reached.

        `start` is the checkpoint of another model that the training begins from.
        """


def refuse_start(start: object) -> None:
    """Of a recipe that begins with random weights.

    Raises:
        SourceError: if there is a checkpoint to start from.
    """
    if start is not None:
        raise SourceError(
            f"This model is trained from random weights, not from {start}: leave out --from."
        )


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """AdamW with a short warm-up and a cosine to a tenth of `rate`; `time` bytes a sequence."""

    steps: int = 2000
    batch: int = 8
    time: int = 256
    rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.1
    seed: int = 0

    def train(self, module: nn.Module, report: Report | None, start: Path | None) -> str:
        """As `Training` says: a language model over bytes, from random weights.

        Raises:
            SourceError: if there is a checkpoint to start from.
        """
        refuse_start(start)
        return f"held-out loss {train(module, self, report):.4f} nats per byte"


Loss = Callable[[nn.Module, int, torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """AdamW with a short warm-up and a linear decay, on batches that a formula draws.

    `loss` is that of a module on a batch of so many, drawn by a generator, and `unit` what it
    counts; `finish` is done last, with the generator of what is held out.
    """

    loss: Loss
    unit: str
    steps: int = 600
    batch: int = 32
    rate: float = 3e-3
    seed: int = 0
    finish: Callable[[nn.Module, torch.Generator], None] | None = None

    def train(self, module: nn.Module, report: Report | None, start: Path | None) -> str:
        """As `Training` says.

        Raises:
            SourceError: if there is a checkpoint to start from.
        """
        refuse_start(start)
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(self.seed)
        parameters = [each for each in module.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.rate, weight_decay=0.01)
        module.train()
        for step in range(self.steps):
            done = min(1.0, (step + 1) / 30) * (1 - step / self.steps)
            optimizer.param_groups[0]["lr"] = self.rate * done
            loss = self.loss(module, self.batch, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if report is not None and step % 50 == 0:
                report(step, loss.item())
        module.eval()
        if self.finish is not None:
            self.finish(module, torch.Generator().manual_seed(OTHER))
        return f"held-out loss {self.held_out(module):.4f} {self.unit}"

    @torch.no_grad()
    def held_out(self, module: nn.Module) -> float:
        """The loss on batches that were never trained on."""
        generator = torch.Generator().manual_seed(OTHER + 1)
        return sum(self.loss(module, 100, generator).item() for _ in range(5)) / 5


def train(
    module: nn.Module,
    recipe: TrainingRecipe,
    report: Report | None = None,
    tokens: Callable[[Tensor], Tensor] = Tensor.long,
) -> float:
    """Train `module` (input_ids [B, T] -> logits [B, T, vocab]) in place; the held-out loss after.

    Args:
        module: a language model; parameters that need no gradient stay as they are.
        recipe: how long, on what, how fast.
        report: is told the step and the training loss now and then.
        tokens: makes the model's token ids [N] of bytes [M]; left out, each byte is one.
    """
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(recipe.seed)
    text = tokens(training_text())
    optimizer = torch.optim.AdamW(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=recipe.rate,
        betas=(0.9, 0.95),
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    module.train()
    for step in range(recipe.steps):
        starts = torch.randint(len(text) - recipe.time - 1, (recipe.batch,), generator=generator)
        rows = torch.stack([text[s : s + recipe.time + 1] for s in starts.tolist()]).long()
        loss = _loss(module, rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if report is not None and step % 50 == 0:
            report(step, loss.item())
    module.eval()
    return validate(module, tokens)


@torch.no_grad()
def validate(module: nn.Module, tokens: Callable[[Tensor], Tensor] = Tensor.long) -> float:
    """Mean negative log-likelihood of a token, in nats, on the held-out modules."""
    text = tokens(held_out_text())
    count = (len(text) - 1) // WINDOW
    rows = torch.stack([text[i * WINDOW : (i + 1) * WINDOW + 1] for i in range(count)]).long()
    parts = [rows[first : first + 8] for first in range(0, count, 8)]
    return sum(_loss(module, part).item() * len(part) for part in parts) / count


def training_text() -> Tensor:
    """Bytes of every top-level module that is not held out, in order of name."""
    paths = sorted(_library().glob("*.py"))
    return _bytes([path for path in paths if path.stem not in HELD_OUT])


def held_out_text() -> Tensor:
    """Bytes of the held-out modules."""
    return _bytes([_library() / f"{name}.py" for name in HELD_OUT])


def held_out_digest() -> str:
    """SHA-256 of the held-out bytes: equal digests make losses comparable."""
    return hashlib.sha256(held_out_text().numpy().tobytes()).hexdigest()


def place(text: str) -> Path:
    """The value of ``--out``: where a file can be written, found before what is trained for it.

    Raises:
        argparse.ArgumentTypeError: if none can.
    """
    try:
        require_file(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def timed_report(start: float) -> Report:
    """A report that prints step, loss and seconds since `start` (of `time.monotonic`)."""

    def report(step: int, loss: float) -> None:
        print(f"step {step:5d}  loss {loss:.3f}  {time.monotonic() - start:6.1f} s", flush=True)  # noqa: T201

    return report


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _bytes(paths: list[Path]) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(p.read_bytes() for p in paths)), dtype=torch.uint8)


def _loss(module: nn.Module, rows: Tensor) -> Tensor:
    logits: Tensor = module(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def _rate(step: int, recipe: TrainingRecipe) -> float:
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))
