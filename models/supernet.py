"""LLM-QFA: one tuning for every assignment of 2, 3 and 4 bits to the layers of a model.

    y = x (s_b * codes_b + z_b)^T + B_b A_b pool(x),     z_b <- z_b + B_b A_b when it is done

Each layer has, for each number of bits, a frozen quantized weight and an adapter of its own.  The
adapter sees the sum of each group of inputs, so that it is constant within a group and folds into
the offsets exactly.  Each step draws bits for every layer around a mean that runs up and down
between the least and the most bits (a triangular wave): drawn alike for all layers, averages would
nearly all lie in the middle.

    python -P -m intaglio.models.supernet BASE.pt --text FILE --out SUPERNET.pt

Source: Yi et al. 2024, arXiv:2405.20202; the pooled adapter is of Xu et al. 2023, arXiv:2309.14717.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError
from intaglio.whole_files import output

from . import FORMAT as CHECKPOINT
from . import find
from .training import Report, place
from .tuning import Draw, of_text

FORMAT = "intaglio.supernet/1"
BITS = (2, 3, 4)
SHRINKS = 40  # clipped ranges that are tried, down to a fifth of the whole
KEPT = ("lm_head",)  # layers that stay as they are


class SuperLinear(nn.Module):
    """A linear layer [N, K] at several numbers of bits, `bits` being the one that it runs at."""

    def __init__(self, rows: int, inputs: int, group: int, rank: int, bias: Tensor | None) -> None:
        super().__init__()
        groups = -(-inputs // group)
        self.group, self.inputs, self.bits = group, inputs, max(BITS)
        self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
        for bits in BITS:
            self.register_buffer(f"codes_{bits}", torch.zeros(rows, inputs, dtype=torch.int8))
            self.register_buffer(f"scale_{bits}", torch.zeros(rows, groups))
            self.register_buffer(f"offset_{bits}", torch.zeros(rows, groups))
            self.register_parameter(f"down_{bits}", nn.Parameter(torch.zeros(rank, groups)))
            self.register_parameter(f"up_{bits}", nn.Parameter(torch.zeros(rows, rank)))

    @classmethod
    def of(
        cls, layer: nn.Linear, group: int, rank: int, generator: torch.Generator
    ) -> "SuperLinear":
        """The layer quantized at every number of bits, its adapters adding nothing yet."""
        rows, inputs = layer.weight.shape
        even = -(-inputs // -(-inputs // group))  # groups of nearly that size, all alike
        made = cls(rows, inputs, even, rank, layer.bias)
        for bits in BITS:
            codes, scale, offset = quantized(layer.weight.detach(), bits, even)
            made.get_buffer(f"codes_{bits}").copy_(codes)
            made.get_buffer(f"scale_{bits}").copy_(scale)
            made.get_buffer(f"offset_{bits}").copy_(offset)
            down = made.get_parameter(f"down_{bits}")
            with torch.no_grad():
                down.copy_(torch.randn(down.shape, generator=generator) / inputs**0.5)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., K] at the present bits."""
        codes, scale, offset = (
            self.get_buffer(f"{part}_{self.bits}") for part in ("codes", "scale", "offset")
        )
        weight = codes * spread(scale, self.group, self.inputs)
        y = F.linear(x, weight + spread(offset, self.group, self.inputs), self.bias)
        sums = F.pad(x, (0, -self.inputs % self.group)).unflatten(-1, (-1, self.group)).sum(-1)  # type: ignore[no-untyped-call]
        down, up = (self.get_parameter(f"{part}_{self.bits}") for part in ("down", "up"))
        added: Tensor = (sums @ down.T) @ up.T
        return y + added

    def folded(self, bits: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codes int8 [N, K], scales and offsets [N, G] at `bits`, the adapter among the offsets."""
        added = self.get_parameter(f"up_{bits}") @ self.get_parameter(f"down_{bits}")
        parts = [self.get_buffer(f"{part}_{bits}") for part in ("codes", "scale", "offset")]
        return parts[0], parts[1], (parts[2] + added).detach()


def spread(values: Tensor, group: int, inputs: int) -> Tensor:
    """Values [N, G] for each input of their group: [N, K]."""
    return values.repeat_interleave(group, 1)[:, :inputs]


def quantized(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and offsets of a weight [N, K]: rounded, of the best of some clipped ranges."""
    rows, inputs = weight.shape
    half = 2 ** (bits - 1)
    cut = F.pad(weight, (0, -inputs % group)).reshape(rows, -1, group)
    low, high = cut.amin(-1).clamp(max=0), cut.amax(-1).clamp(min=0)
    best = torch.full_like(low, torch.inf)
    scale, offset = torch.ones_like(low), torch.zeros_like(low)
    for index in range(SHRINKS):
        share = 1 - 0.8 * index / SHRINKS
        step = (share * (high - low) / (2 * half - 1)).clamp(min=1e-12)
        start = share * low + half * step
        codes = ((cut - start[..., None]) / step[..., None]).round().clamp(-half, half - 1)
        error = (codes * step[..., None] + start[..., None] - cut).square().sum(-1)
        better = error < best
        best, scale, offset = (
            torch.where(better, new, old)
            for new, old in ((error, best), (step, scale), (start, offset))
        )
    codes = ((cut - offset[..., None]) / scale[..., None]).round().clamp(-half, half - 1)
    return codes.reshape(rows, -1)[:, :inputs].to(torch.int8), scale, offset


@dataclass(frozen=True, kw_only=True)
class Supernet:
    """How a supernet is made of a model: groups, rank, and the schedule of average bits.

    `period` is the number of steps in which the mean goes down from the most bits and up again;
    None draws the bits of each layer alike in every step.
    """

    group: int = 128
    rank: int = 4
    steps: int = 300
    period: int | None = 100
    rate: float = 1e-3
    seed: int = 0

    def mean(self, step: int) -> float | None:
        """The average number of bits of a step."""
        if self.period is None:
            return None
        wave = abs(2 * (step % self.period) / self.period - 1)
        return min(BITS) + (max(BITS) - min(BITS)) * wave

    def tune(self, module: nn.Module, draw: Draw, report: Report | None = None) -> list[float]:
        """Make a supernet of `module` in place and tune its adapters; average bits of each step."""
        generator = torch.Generator().manual_seed(self.seed)
        module.requires_grad_(requires_grad=False)
        for path, layer in [*module.named_modules()]:
            if isinstance(layer, nn.Linear) and path not in KEPT:
                made = SuperLinear.of(layer, self.group, self.rank, generator)
                module.set_submodule(path, made)
        layers = list(super_layers(module).values())
        trained = [p for layer in layers for n, p in layer.named_parameters() if n != "bias"]
        optimizer = torch.optim.AdamW(trained, lr=self.rate, weight_decay=0.0)
        found = []
        for step in range(self.steps):
            bits = draw_bits(self.mean(step), len(layers), generator)
            for layer, each in zip(layers, bits, strict=True):
                layer.bits = each
            rows = draw(generator)
            loss = F.cross_entropy(module(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            found.append(sum(bits) / len(bits))
            if report is not None and step % 50 == 0:
                report(step, loss.item())
        return found


def draw_bits(mean: float | None, count: int, generator: torch.Generator) -> list[int]:
    """Bits of `count` layers, each next to the mean and the mean on average; any without one."""
    if mean is None:
        return [BITS[i] for i in torch.randint(len(BITS), (count,), generator=generator).tolist()]
    low = min(int(mean), max(BITS) - 1)
    return [low + int(u < mean - low) for u in torch.rand(count, generator=generator).tolist()]


def super_layers(module: nn.Module) -> dict[str, SuperLinear]:
    """The layers of a supernet by path."""
    return {n: m for n, m in module.named_modules() if isinstance(m, SuperLinear)}


def save(path: str | Path, model: str, config: Any, module: nn.Module) -> None:
    """Write a supernet as `restore` reads it."""
    values = dict(config) if isinstance(config, Mapping) else asdict(config)
    layers = {
        name: [layer.group, len(layer.get_parameter(f"down_{BITS[0]}"))]
        for name, layer in super_layers(module).items()
    }
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    held = {"format": FORMAT, "model": model, "config": values, "layers": layers}
    with output(path) as draft:
        torch.save({**held, "state_dict": state}, draft)


def restore(held: Mapping[str, Any]) -> nn.Module:
    """The module of a file that `save` wrote.

    Raises:
        SourceError: if it is none, or its tensors do not fit.
    """
    if not isinstance(held, Mapping) or held.get("format") != FORMAT:
        raise SourceError(f"This is no supernet: its format should be {FORMAT!r}.")
    lacks = [name for name in ("model", "config", "layers", "state_dict") if name not in held]
    if lacks:
        raise SourceError(f"The supernet lacks {lacks[0]!r}.")
    model = find(str(held["model"]))
    module = model.build(model.configure(held["config"]))
    for path, (group, rank) in dict(held["layers"]).items():
        old = dict(module.named_modules()).get(path)
        if not isinstance(old, nn.Linear):
            raise SourceError(f"The supernet has a layer {path!r}, and the model has none there.")
        rows, inputs = old.weight.shape
        module.set_submodule(path, SuperLinear(rows, inputs, group, rank, old.bias))
    try:
        module.load_state_dict(held["state_dict"])
    except (RuntimeError, TypeError) as error:
        raise SourceError(f"The supernet's tensors do not fit: {error}") from error
    return module.eval().requires_grad_(requires_grad=False)


def set_bits(module: nn.Module, bits: Sequence[int]) -> Iterator[tuple[str, SuperLinear]]:
    """Let each layer run at its number of `bits`; the layers by path."""
    for (name, layer), each in zip(super_layers(module).items(), bits, strict=True):
        layer.bits = each
        yield name, layer


def subnet(held: Mapping[str, Any], bits: Mapping[str, int]) -> dict[str, Any]:
    """A checkpoint of what `save` wrote with its layers, by path, at `bits`.

    Layers are of few bits, under the names that decoupleQ gives them.
    """
    module = restore(held)
    layers = super_layers(module)
    state = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if name.rpartition(".")[0] not in layers or name.endswith(".bias")
    }
    for path, layer in layers.items():
        codes, scale, offset = layer.folded(bits[path])
        state[f"{path}.weight"] = codes
        state[f"{path}.weight_qscale"], state[f"{path}.weight_qzero"] = scale, offset
    named = {"format": CHECKPOINT, "model": held["model"], "config": dict(held["config"])}
    return {**named, "state_dict": state}


def main() -> None:
    """Make a supernet of a checkpoint, tune it on a text, and save it."""
    parser = argparse.ArgumentParser(prog="intaglio.models.supernet", description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=place, required=True)
    for name in ("group", "rank", "steps", "period"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Supernet, name))
    given = vars(parser.parse_args())
    base, text, out = (given.pop(name) for name in ("base", "text", "out"))
    torch.set_num_threads(1)
    held = torch.load(base, weights_only=True)
    model = find(held["model"])
    module = model.build(model.configure(held["config"]))
    module.load_state_dict(held["state_dict"])
    Supernet(**given).tune(module, of_text(text.read_bytes()))
    save(out, held["model"], held["config"], module)
    print(f"{out} written")  # noqa: T201


if __name__ == "__main__":
    main()
