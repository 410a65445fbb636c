"""A transformer over pictures and text, and three stages of distillation into mixers in its place.

Source: Liao et al. 2025, arXiv:2502.13145, section 3; github hustvl/mmMamba @ 85143d0, configs/.
The task is that of `_questions`, small enough for a minute of one thread.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError
from intaglio.models.training import Report

from .drawn_questions import answered, draw
from .pretrained_llama import read_checkpoint

INHERITED = ("q_proj", "k_proj", "v_proj")
KEPT = "o_proj"  # of the attention, in all stages


class Distilled(nn.Module):
    """A module of (input_ids, pixel_values) whose layers are attention, or mixers in its place.

    Its `config` has the sizes of pictures, and `attention_layers`.
    """

    config: Any

    def mixers(self) -> list[nn.Module]:
        """What mixes tokens, layer by layer."""
        raise NotImplementedError

    def fresh(self) -> dict[int, nn.Module]:
        """Those that are not attention, by layer."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """A transformer of pictures and questions, then three stages to mixers in its place.

    The first two match what each mixer gives, of what enters the attention that it stands for, in
    mean squares: of the new parameters alone, then of q, k and v as well.  The third matches the
    logits of the whole (Kullback-Leibler), of all parameters of mixers but o_proj.  `steps` are
    those of the transformer, `stages` those of each stage; rows are `batch` pictures.
    """

    steps: int = 700
    stages: tuple[int, int, int] = (150, 150, 400)
    batch: int = 32
    questions: int = 16
    rate: float = 3e-3
    seed: int = 0

    def train(self, module: nn.Module, report: Report | None, start: Path | None) -> str:
        """As `Training` says: the transformer from nothing, what has mixers from a transformer.

        Raises:
            SourceError: there is no transformer to begin from, or one where none is needed.
        """
        assert isinstance(module, Distilled)
        teaches = not module.fresh()
        if teaches != (start is None):
            raise SourceError(
                "A mmMamba with mixers is distilled from one without: train it with --preset "
                "teacher and without --from, then name it, as --from mmmamba_teacher.pt."
            )
        torch.set_num_threads(1)
        if start is None:
            return f"{self.teach(module, report):.1%} of questions answered"
        shares = self.distil(module, read_teacher(start, module), report)
        told = ", ".join(f"{share:.1%}" for share in shares)
        return f"questions answered after each of three stages: {told}"

    def teach(self, module: Distilled, report: Report | None = None) -> float:
        """Train the transformer on answers; the share of questions it answers after."""

        def loss(ids: Tensor, pixels: Tensor, answers: Tensor) -> Tensor:
            logits = answered(module(ids, pixels), self.questions)
            return F.cross_entropy(logits.flatten(0, 1), answers.flatten())

        self._run(module, list(module.parameters()), loss, self.steps, report)
        return self.share(module)

    def distil(
        self, module: Distilled, teacher: Distilled, report: Report | None = None
    ) -> list[float]:
        """Seed `module` with `teacher` and run the stages; the share answered after each."""
        seed(module, teacher)

        def layers(ids: Tensor, pixels: Tensor, _: Tensor) -> Tensor:
            seen = observe(teacher, ids, pixels)
            losses = [
                F.mse_loss(mixer(seen[layer][0]), seen[layer][1]) / seen[layer][1].square().mean()
                for layer, mixer in module.fresh().items()
            ]
            return torch.stack(losses).mean()

        def logits(ids: Tensor, pixels: Tensor, _: Tensor) -> Tensor:
            with torch.no_grad():
                wanted = answered(teacher(ids, pixels), self.questions).log_softmax(-1)
            given = answered(module(ids, pixels), self.questions).log_softmax(-1)
            return F.kl_div(
                given.flatten(0, 1), wanted.flatten(0, 1), reduction="batchmean", log_target=True
            )

        new, all_ = trained(module, inherited=False), trained(module, inherited=True)
        shares = []
        for parameters, loss, steps in zip(
            (new, all_, all_), (layers, layers, logits), self.stages, strict=True
        ):
            self._run(module, parameters, loss, steps, report)
            shares.append(self.share(module))
        return shares

    @torch.no_grad()
    def share(self, module: Distilled) -> float:
        """The share of questions about pictures never trained on that are answered."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        ids, pixels, answers = self._draw(module.config, 256, generator)
        found = answered(module(ids, pixels), self.questions).argmax(-1)
        return (found == answers).float().mean().item()

    def _draw(
        self, config: Any, rows: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        image = (config.channels, config.image_size, config.image_token)
        return draw(rows, config.image_tokens, self.questions, image, generator)

    def _run(
        self,
        module: Distilled,
        parameters: list[nn.Parameter],
        loss: Callable[[Tensor, Tensor, Tensor], Tensor],
        steps: int,
        report: Report | None,
    ) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.AdamW(parameters, lr=self.rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, self.rate / 20)
        module.train()
        for step in range(steps):
            value = loss(*self._draw(module.config, self.batch, generator))
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if report is not None and step % 50 == 0:
                report(step, value.item())
        module.eval()


@torch.no_grad()
def seed(module: Distilled, teacher: Distilled) -> None:
    """Give `module` the weights of `teacher`, q, k, v and o of its attention to the mixers."""
    module.load_state_dict(teacher.state_dict(), strict=False)


def trained(module: Distilled, *, inherited: bool) -> list[nn.Parameter]:
    """Parameters of the mixers that are new, or all that are not kept."""
    kept = (KEPT,) if inherited else (KEPT, *INHERITED)
    return [
        parameter
        for mixer in module.fresh().values()
        for name, parameter in mixer.named_parameters()
        if name.partition(".")[0] not in kept
    ]


@torch.no_grad()
def observe(module: Distilled, ids: Tensor, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What enters and leaves what mixes tokens, layer by layer."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, given: tuple[Tensor], made: Tensor) -> None:
        seen.append((given[0], made))

    hooks = [mixer.register_forward_hook(note) for mixer in module.mixers()]
    module(ids, pixels)
    for hook in hooks:
        hook.remove()
    return seen


def read_teacher(path: Path, module: Distilled) -> Distilled:
    """The transformer at `path`, of the sizes of `module`.

    Raises:
        SourceError: it is no checkpoint of a mmMamba of these sizes.
    """
    values, tensors = read_checkpoint(path, "mmmamba")
    own = asdict(module.config)
    layers = values.get("attention_layers", "")
    other = [name for name in own if name != "attention_layers" and values.get(name) != own[name]]
    if other:
        raise SourceError(
            f"{path} is of other sizes: {', '.join(f'{n} = {values.get(n)!r}' for n in other)}."
        )
    teacher = type(module)(replace(module.config, attention_layers=layers))
    teacher.load_state_dict(dict(tensors))
    if teacher.fresh():
        raise SourceError(f"{path} has mixers itself: distil from one of --preset teacher.")
    return teacher.eval()
