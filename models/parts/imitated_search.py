"""How a memory learns to give what a search among the states of a corpus would give (kNN-LM).

The corpus are packages of Python's library that no language model of ours was trained on, without
every fourth part of them.  Each state of it is a key, with the byte behind it: the nearest keys,
weighted by softmax of -distance / temperature, give a distribution of the next byte (Khandelwal et
al. 2020, arXiv:1911.00172).  For a state of the corpus itself its own key is left out, and the
memory learns from that: half the divergence from it, half the cross-entropy of the byte.
"""

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError
from intaglio.models.llama import LLAMA, build
from intaglio.models.training import WINDOW, Report

from . import pretrained_llama

PACKAGES = ("json", "email", "unittest", "logging", "http", "urllib", "xml", "importlib")
PART, EVERY = 2048, 4  # bytes; of so many parts of the files one is no part of the corpus
NEAREST = 256


def corpus() -> Tensor:
    """Bytes of the packages, in order of name."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = [path for name in PACKAGES for path in sorted((library / name).glob("*.py"))]
    return torch.frombuffer(bytearray(b"".join(p.read_bytes() for p in paths)), dtype=torch.uint8)


def kept_and_left_out(keys: int) -> tuple[Tensor, list[Tensor]]:
    """So many bytes of the corpus, and the parts that are not in it."""
    parts = torch.split(corpus(), PART)
    kept = [each for place, each in enumerate(parts) if place % EVERY != EVERY - 1]
    return torch.cat(kept[: keys // PART]), list(parts[EVERY - 1 :: EVERY])


@torch.no_grad()
def states(model: nn.Module, tap: str, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What goes into the module `tap`, in windows of text.

    Returns:
        States [N, hidden], log-probabilities [N, vocab] of the model, and the next bytes [N].
    """
    count = (len(text) - 1) // WINDOW
    rows = torch.stack([text[i * WINDOW : (i + 1) * WINDOW + 1] for i in range(count)]).long()
    taken: list[Tensor] = []
    module = model.get_submodule(tap)
    hook = module.register_forward_pre_hook(lambda _module, given: taken.append(given[0]))
    logits = [model(part[:, :-1]) for part in torch.split(rows, 16)]
    hook.remove()
    flat = torch.cat(logits).log_softmax(-1).flatten(0, 1)
    return torch.cat(taken).flatten(0, 1), flat, rows[:, 1:].flatten()


def nearest(queries: Tensor, keys: Tensor, *, drop: bool) -> tuple[Tensor, Tensor]:
    """Squared distances and places [N, k] of the nearest keys; `drop` leaves out the first."""
    squares, found = keys.square().sum(1), []
    for part in torch.split(queries, 1024):
        distance = squares - 2 * part @ keys.T + part.square().sum(1, keepdim=True)
        found.append(distance.topk(NEAREST + drop, largest=False))
    distances, places = (torch.cat(each)[:, int(drop) :] for each in zip(*found, strict=True))
    return distances, places


def searched(distances: Tensor, values: Tensor, soft: float) -> Tensor:
    """The distribution [N, 256] of the bytes `values` behind the nearest keys."""
    weights = (-distances / soft).softmax(1)
    return torch.zeros(len(weights), 256).scatter_add_(1, values, weights)


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """AdamW on states of the corpus, beside a trained transformer.

    `tap` finds the module of it whose input a memory reads, `soft` is the temperature of distances.
    """

    tap: Callable[[nn.Module], str]
    steps: int = 3000
    batch: int = 128
    rate: float = 2e-3
    keys: int = 60_000
    soft: float = 2.0
    seed: int = 0

    def train(self, module: nn.Module, report: Report | None, start: Path | None) -> str:
        """As `Training` says, beside the language model at `start`.

        Raises:
            SourceError: there is none, or it is of another kind.
        """
        if start is None:
            raise SourceError(
                "A memory belongs to a language model: name its checkpoint, as --from "
                "models/checkpoints/llama.pt."
            )
        pretrained = pretrained_llama.read(start)
        model = build(LLAMA.configure(pretrained.config)).eval()
        model.load_state_dict(dict(pretrained.tensors))
        torch.set_num_threads(1)
        text, _ = kept_and_left_out(self.keys)
        keys, _, values = states(model, self.tap(model), text)
        self.imitate(module, keys, keys, values, report)
        with torch.no_grad():
            loss = F.cross_entropy(module(keys[None])[0], values)
        return f"loss {loss:.4f} nats per byte of the corpus"

    def imitate(
        self,
        memory: nn.Module,
        learnt: Tensor,
        keys: Tensor,
        values: Tensor,
        report: Report | None = None,
    ) -> None:
        """Train `memory` in place on the states `learnt`, the first of `keys` [N, hidden]."""
        away, near = nearest(learnt, keys, drop=True)
        targets = searched(away, values[near], self.soft)
        optimizer = torch.optim.AdamW(memory.parameters(), lr=self.rate, betas=(0.9, 0.95))
        generator = torch.Generator().manual_seed(self.seed)
        memory.train()
        for step in range(self.steps):
            done = min(1.0, (step + 1) / 100) * (1 - step / self.steps)
            optimizer.param_groups[0]["lr"] = self.rate * done
            chosen = torch.randint(len(learnt), (self.batch,), generator=generator)
            logits = memory(learnt[chosen][None])[0]
            imitated = F.kl_div(logits.log_softmax(-1), targets[chosen], reduction="batchmean")
            loss = (imitated + F.cross_entropy(logits, values[chosen])) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if report is not None and step % 50 == 0:
                report(step, loss.item())
        memory.eval()
