"""S2FT: fine-tuning of a few channels and heads, whose changes are slices of dense weights.

    y = W x + pad(S x)         rows s:e of up and v
    y = W x + S x[s:e]         columns s:e of down and o

Channel j of a feed-forward is row j of up and gate and column j of down, a head is its rows of v
and columns of o: putting them in another order changes nothing (co-permutation).  The order puts
those that are trained next to each other: [up alone, both, down alone, all others].  What is
trained starts from zero and is added to the weights afterwards; the model is then in another
order than its base, which `intaglio adapter BASE TUNED` puts back.

    python -P -m intaglio.models.tuning BASE.pt --text FILE --out TUNED.pt

Source: Yang et al. 2024, arXiv:2412.06289.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError

from . import find, save
from .llama import Attention
from .parts.language_layers import LanguageModel, SwiGLU
from .training import Report

Draw = Callable[[torch.Generator], Tensor]  # rows of tokens [B, T + 1] to learn from
Select = Literal["random", "small", "large"]


@dataclass(frozen=True, kw_only=True)
class S2FT:
    """Which share of channels and heads is trained, of all layers together, and how.

    `up` and `down` are shares of channels, `value` and `output` of groups of heads that share keys
    and values; `select` draws them, or takes those whose weights are smallest or largest.
    """

    up: float = 0.05
    down: float = 0.05
    value: float = 0.0
    output: float = 0.0
    select: Select = "random"
    steps: int = 250
    rate: float = 1e-3
    seed: int = 0

    def tune(self, module: LanguageModel, draw: Draw, report: Report | None = None) -> int:
        """Tune `module` in place and leave its channels in another order; entries trained."""
        generator = torch.Generator().manual_seed(self.seed)
        module.requires_grad_(requires_grad=False)
        slices = [*_channels(module, self, generator), *_heads(module, self, generator)]
        trained = [each.delta for each in slices if each.delta.numel()]
        if not trained:
            module.requires_grad_(requires_grad=True)
            return 0
        optimizer = torch.optim.AdamW(trained, lr=self.rate, weight_decay=0.0)
        for step in range(self.steps):
            rows = draw(generator)
            loss = F.cross_entropy(module(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if report is not None and step % 50 == 0:
                report(step, loss.item())
        for each in slices:
            each.fuse()
        module.requires_grad_(requires_grad=True)
        return sum(delta.numel() for delta in trained)


class Slice:
    """What is trained of one linear layer: entries `first` to `end` of its outputs or inputs."""

    def __init__(self, layer: nn.Linear, first: int, end: int, axis: int) -> None:
        shape = list(layer.weight.shape)
        shape[axis] = end - first
        self.layer, self.first, self.end, self.axis = layer, first, end, axis
        self.delta = torch.zeros(shape, requires_grad=True)
        self._hook = layer.register_forward_hook(self._add)

    def _add(self, _: nn.Module, given: tuple[Tensor], y: Tensor) -> Tensor:
        x = given[0]
        if self.axis == 1:
            return y + x[..., self.first : self.end] @ self.delta.T
        return y + F.pad(x @ self.delta.T, (self.first, self.layer.out_features - self.end))

    @torch.no_grad()
    def fuse(self) -> None:
        """Add it to the layer's weight, and to its result no more."""
        self._hook.remove()
        self.layer.weight.narrow(self.axis, self.first, self.end - self.first).add_(self.delta)


def _channels(module: LanguageModel, how: S2FT, generator: torch.Generator) -> Iterator[Slice]:
    layers = [layer.mlp for layer in module.layers if isinstance(layer.mlp, SwiGLU)]
    norms = [(m.up_proj.weight.norm(dim=1) * m.down_proj.weight.norm(dim=0)) for m in layers]
    first = _chosen(norms, how.up, how.select, generator)
    second = _chosen(norms, how.down, how.select, generator)
    for mlp, rows, columns in zip(layers, first, second, strict=True):
        order, (a, b), (c, d) = _order(rows, columns, mlp.up_proj.out_features)
        _permute([(mlp.up_proj, 0), (mlp.gate_proj, 0), (mlp.down_proj, 1)], order)
        yield Slice(mlp.up_proj, a, b, 0)
        yield Slice(mlp.down_proj, c, d, 1)


def _heads(module: LanguageModel, how: S2FT, generator: torch.Generator) -> Iterator[Slice]:
    """Groups of heads: all that share keys and values move together."""
    layers = [layer.mixer for layer in module.layers if isinstance(layer.mixer, Attention)]
    norms = [m.v_proj.weight.reshape(m.config.num_kv_heads, -1).norm(dim=1) for m in layers]
    first = _chosen(norms, how.value, how.select, generator)
    second = _chosen(norms, how.output, how.select, generator)
    for mixer, values, outputs in zip(layers, first, second, strict=True):
        groups = mixer.config.num_kv_heads
        order, (a, b), (c, d) = _order(values, outputs, groups)
        for layer, axis in (
            *((mixer.q_proj, 0), (mixer.k_proj, 0)),
            *((mixer.v_proj, 0), (mixer.o_proj, 1)),
        ):
            size = layer.weight.shape[axis] // groups
            _permute([(layer, axis)], _blocks(order, size))
        size, wide = (
            w.shape[axis] // groups
            for w, axis in ((mixer.v_proj.weight, 0), (mixer.o_proj.weight, 1))
        )
        yield Slice(mixer.v_proj, a * size, b * size, 0)
        yield Slice(mixer.o_proj, c * wide, d * wide, 1)


def _chosen(
    norms: Sequence[Tensor], share: float, select: Select, generator: torch.Generator
) -> list[Tensor]:
    """The chosen entries of each layer, of all layers' together."""
    sizes = [len(each) for each in norms]
    count = int(share * sum(sizes))
    if not sizes:
        return []
    if select == "random":
        found = torch.randperm(sum(sizes), generator=generator)[:count]
    else:
        found = torch.cat(list(norms)).argsort(descending=select == "large")[:count]
    mask = torch.zeros(sum(sizes), dtype=torch.bool)
    mask[found] = True
    return [part.nonzero().flatten() for part in torch.split(mask, sizes)]


def _order(
    first: Tensor, second: Tensor, size: int
) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
    """All entries, those of `first` and of `second` next to each other, and where they stand."""
    here, there = (torch.zeros(size, dtype=torch.bool) for _ in range(2))
    here[first], there[second] = True, True
    parts = [here & ~there, here & there, ~here & there, ~here & ~there]
    order = torch.cat([part.nonzero().flatten() for part in parts])
    alone = int(parts[0].sum())
    return order, (0, len(first)), (alone, alone + len(second))


def _blocks(order: Tensor, size: int) -> Tensor:
    """The order of entries of which `size` move together."""
    return (order[:, None] * size + torch.arange(size)).flatten()


@torch.no_grad()
def _permute(layers: Sequence[tuple[nn.Linear, int]], order: Tensor) -> None:
    for layer, axis in layers:
        layer.weight.copy_(layer.weight.index_select(axis, order))
        if axis == 0 and layer.bias is not None:
            layer.bias.copy_(layer.bias[order])


def of_text(text: bytes, batch: int = 8, time: int = 64) -> Draw:
    """Rows of bytes from anywhere in `text`."""
    every = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()

    def draw(generator: torch.Generator) -> Tensor:
        starts = torch.randint(len(every) - time, (batch,), generator=generator)
        return torch.stack([every[start : start + time + 1] for start in starts.tolist()])

    return draw


def main() -> None:
    """Tune a checkpoint on a text, and save it."""
    parser = argparse.ArgumentParser(prog="intaglio.models.tuning", description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    for name in ("up", "down", "value", "output", "rate"):
        parser.add_argument(f"--{name}", type=float, default=getattr(S2FT, name))
    parser.add_argument("--steps", type=int, default=S2FT.steps)
    parser.add_argument("--select", choices=("random", "small", "large"), default=S2FT.select)
    given = vars(parser.parse_args())
    base, text, out = (given.pop(name) for name in ("base", "text", "out"))
    torch.set_num_threads(1)
    held = torch.load(base, weights_only=True)
    config = find(held["model"]).configure(held["config"])
    module = find(held["model"]).build(config)
    module.load_state_dict(held["state_dict"])
    if not isinstance(module, LanguageModel):
        raise SourceError(f"{base} is no language model of blocks, whose channels are known.")
    count = S2FT(**given).tune(module, of_text(text.read_bytes()))
    save(out, held["model"], config, module)
    print(f"{count} entries tuned; {out} written")  # noqa: T201


if __name__ == "__main__":
    main()
