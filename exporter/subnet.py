"""From a supernet to the subnet of a budget: `intaglio subnet`.

Bits are counted as a bundle holds them, with a scale and an offset of 32 bits for each group.
The search evaluates random assignments of bits to layers, finds by regression which layers the loss
depends on, and evaluates more around what the budget allows those (Yi et al. 2024,
arXiv:2405.20202: 100 and 50).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.options.clock import Clock, Progress
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.container import read_container
from intaglio.exporter.sources.kinds.module import in_memory
from intaglio.models import FORMAT, find
from intaglio.models.supernet import BITS, SuperLinear, restore, set_bits, super_layers
from intaglio.places import require_file
from intaglio.whole_files import output

from .merging.losses import Data, loss, read_data

RANDOM, AROUND = 100, 50  # evaluations
PAIR = 64  # bits of a scale and an offset
BUDGET = re.compile(r"(\d+(?:\.\d+)?)(bits|MB)")
Bits = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """An assignment of bits to layers, its loss, its bits per weight, and bytes of the model."""

    bits: Bits
    loss: float
    mean: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class SubnetReport:
    """What was searched: all that was tried, the best of each size, and what was taken."""

    out: Path
    layers: tuple[str, ...]
    tried: tuple[Tried, ...]
    taken: Tried

    @property
    def pareto(self) -> tuple[Tried, ...]:
        """Those than which no smaller one has less loss, the smallest first."""
        found: list[Tried] = []
        for each in sorted(self.tried, key=lambda t: (t.mean, t.loss)):
            if not found or each.loss < found[-1].loss:
                found.append(each)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "out": str(self.out),
            "bits": dict(zip(self.layers, self.taken.bits, strict=True)),
            "taken": _row(self.taken),
            "evaluated": len(self.tried),
            "pareto": [_row(each) for each in self.pareto],
        }


def make_subnet(
    supernet: str | Path,
    out: str | Path,
    *,
    budget: str,
    data: str | Path,
    seed: int = 0,
    evaluations: tuple[int, int] = (RANDOM, AROUND),
    force: bool = False,
    progress: Progress | None = None,
) -> SubnetReport:
    """Search a supernet for the best subnet of a budget, and write it as a checkpoint.

    Args:
        supernet: the file that `intaglio.models.supernet` wrote.
        out: the checkpoint to write, which `export` takes.
        budget: ``3.1bits`` a weight of the layers that have a choice, or ``1.5MB`` for all.
        data: text or tokens that nothing was tuned on.
        seed: of what is drawn.
        evaluations: how many assignments are tried, at random and around the best.
        force: replace what is at `out`.
        progress: is told each phase.

    Raises:
        OptionError: if the budget cannot be read, or nothing meets it: the nearest is told; or if
            `out` is there, or no place for a file.
        SourceError: if the file is no supernet.
        InputError: if the data does not fit.
    """
    limit, unit = _budget(budget)
    if seed < 0:
        raise OptionError(f"--seed is {seed}; it should be 0 or more.")
    require_file(out, force=force)
    clock = Clock(progress)
    with clock.phase("load"):
        held = read_container(Path(supernet))[1]
        if not isinstance(held, Mapping):
            raise SourceError(f"{supernet} is no supernet.")
        module = restore(held)
        model = find(str(held["model"]))
        example = model.inputs(model.configure(held["config"]), 2, 8, torch.Generator())
        read = read_data(data, in_memory(module, LoadOptions(inputs=example)))
    least = _sized(module, [min(BITS)] * len(super_layers(module)), 0.0)
    if _size(least, unit) > limit:
        raise OptionError(
            f"No subnet has {budget}: the smallest, of {min(BITS)} bits in all layers, has "
            f"{least.mean:.3g}bits, {least.bytes / 1e6:.4g}MB with scales and offsets."
        )
    with clock.phase("search"):
        tried = _search(module, read, limit, unit, seed, evaluations)
    fitting = [each for each in tried if _size(each, unit) <= limit]
    taken = min(fitting, key=lambda each: each.loss)
    with clock.phase("write"):
        _write(held, module, taken.bits, Path(out))
    layers = tuple(super_layers(module))
    return SubnetReport(out=Path(out), layers=layers, tried=tuple(tried), taken=taken)


def _budget(text: str) -> tuple[float, str]:
    found = BUDGET.fullmatch(text)
    if found is None:
        raise OptionError(f"--budget {text}: give bits a weight or a size, as 3.1bits or 1.5MB.")
    return float(found[1]), found[2]


def _size(tried: Tried, unit: str) -> float:
    return tried.mean if unit == "bits" else tried.bytes / 1e6


def _search(
    module: nn.Module,
    data: Data,
    limit: float,
    unit: str,
    seed: int,
    evaluations: tuple[int, int],
) -> list[Tried]:
    """All that was tried: one number of bits for all layers, random ones, and around the best."""
    random = np.random.default_rng(seed)
    count = len(super_layers(module))
    wanted: list[Bits] = [(bits,) * count for bits in BITS]
    for _ in range(evaluations[0]):
        mean = random.uniform(min(BITS), max(BITS))
        low = np.minimum(np.floor(mean), max(BITS) - 1)
        wanted.append(tuple(int(low + (u < mean - low)) for u in random.random(count)))
    tried = {bits: _tried(module, bits, data) for bits in dict.fromkeys(wanted)}
    gains = _gains(module, list(tried.values()))
    for _ in range(evaluations[1]):
        bits = _filled(module, gains * random.lognormal(0, 0.5, count), limit, unit)
        if bits not in tried:
            tried[bits] = _tried(module, bits, data)
    return list(tried.values())


def _tried(module: nn.Module, bits: Bits, data: Data) -> Tried:
    for _ in set_bits(module, bits):
        pass
    return _sized(module, bits, loss(module, data)[0])


def _gains(module: nn.Module, tried: Sequence[Tried]) -> Any:
    """How much the loss falls with a bit more for each weight of a layer: ridge regression."""
    x = np.array([each.bits for each in tried], np.float64)
    y = np.array([each.loss for each in tried])
    x, y = x - x.mean(0), y - y.mean()
    slopes = np.linalg.solve(x.T @ x + 1e-2 * len(x) * np.eye(x.shape[1]), x.T @ y)
    sizes = np.array([_weights(layer) for layer in super_layers(module).values()])
    return np.maximum(-slopes, 1e-9) / sizes


def _filled(module: nn.Module, gains: Any, limit: float, unit: str) -> Bits:
    """Bits for the layers that gain most for their size, as long as the budget has room."""
    bits = [min(BITS)] * len(gains)
    for place in np.argsort(-gains):
        for more in BITS[1:]:
            larger = [*bits]
            larger[place] = more
            if _size(_sized(module, larger, 0.0), unit) > limit:
                break
            bits = larger
    return tuple(bits)


def _weights(layer: SuperLinear) -> int:
    return layer.get_buffer(f"codes_{BITS[0]}").numel()


def _sized(module: nn.Module, bits: Sequence[int], value: float) -> Tried:
    layers = list(super_layers(module).values())
    codes = sum(_weights(each) * b for each, b in zip(layers, bits, strict=True))
    pairs = PAIR * sum(each.get_buffer(f"scale_{BITS[0]}").numel() for each in layers)
    own = {id(p) for each in layers for n, p in each.named_parameters() if n != "bias"}
    others = sum(p.numel() for p in module.parameters() if id(p) not in own)
    return Tried(
        bits=tuple(bits),
        loss=value,
        mean=(codes + pairs) / sum(map(_weights, layers)),
        bytes=(codes + pairs) // 8 + 4 * others,
    )


def _write(held: Mapping[str, Any], module: nn.Module, bits: Bits, out: Path) -> None:
    """A checkpoint whose layers are of few bits, under the names that decoupleQ gives them."""
    layers = dict(set_bits(module, bits))
    state: dict[str, Tensor] = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if name.rpartition(".")[0] not in layers or name.endswith(".bias")
    }
    for path, layer in layers.items():
        codes, scale, offset = layer.folded(layer.bits)
        state[f"{path}.weight"] = codes
        state[f"{path}.weight_qscale"], state[f"{path}.weight_qzero"] = scale, offset
    named = {"format": FORMAT, "model": held["model"], "config": dict(held["config"])}
    with output(out) as draft:
        torch.save({**named, "state_dict": state}, draft)


def _row(tried: Tried) -> dict[str, Any]:
    return {"bits": tried.mean, "bytes": tried.bytes, "loss": tried.loss}
