"""The block stage of decoupleQ: scales, offsets and norms tuned by gradient, codes frozen.

Guo et al. 2024, arXiv:2404.12759, section 3.4.  A block is an entry of the module's outermost
nn.ModuleList (a decoder layer).  On the inputs that the quantized blocks before it yield, it is
tuned to reproduce the outputs of the original block; what is tuned is relative to its start, so
that one rate serves all: scale (1 + a), offset + scale b, norm weight + mean |weight| c.  A block
keeps the change only if it lowers the error on the data held out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.func import functional_call

from intaglio.passes.base import Context
from intaglio.passes.calibration import Calibration

from ._affine import Quantized
from ._chosen import Chosen, ChosenLayer
from ._of_module import other_weight
from .low_bit_pass import Outcome

BETAS, DECAY = (0.9, 0.99), 0.0  # of Adam

Parameters = dict[str, Tensor]


class _Reached(Exception):  # noqa: N818  it is no error
    """A block was called, and its arguments are known."""


@dataclass(frozen=True, kw_only=True)
class _Call:
    """The arguments with which a block was called, and what the original block made of them."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    wanted: Tensor


def tune(
    model: ir.Model,
    context: Context,
    chosen: Chosen,
    found: Outcome,
    *,
    epochs: int,
    rate: float,
) -> bool:
    """Tune every block that has quantized layers; the changes go into `found`."""
    module, data = context.module, context.calibration
    assert data is not None
    reason = _reason(module, model, chosen)
    if reason:
        found.advice.append(f"The block stage of decoupleq was left out: {reason}.")
        return False
    blocks = _blocks(module, chosen)
    parameters = {
        _name(layer): found.weights[layer.path].dequantize().float() for layer in chosen.layers
    }
    for index, (path, layers) in enumerate(blocks.items()):
        if context.progress is not None:
            said = f"{path} as a block, {index + 1} of {len(blocks)}"
            context.progress(said, index / len(blocks))
        stage = _Stage(module, path, layers, found, set(model.graph.initializers))
        record = stage.tune(parameters, data, epochs, rate)
        found.blocks.append({"path": path, **record})
        if record["kept"]:
            parameters |= stage.take(found)
    return any(record["kept"] for record in found.blocks)


def _reason(module: Any, model: ir.Model, chosen: Chosen) -> str:
    """Why blocks cannot be tuned; empty where they can."""
    if not isinstance(module, nn.Module):
        return "the source is no PyTorch module"
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    unknown = [layer.path for layer in chosen.layers if _name(layer) not in names]
    if unknown:
        return f"the weight of {unknown[0]} is no parameter of the module"
    other = other_weight(module, model)
    if other:
        return f"an earlier pass changed {other}, so that the module is another model"
    return "" if _blocks(module, chosen) else "no layer is in an nn.ModuleList"


def _name(layer: ChosenLayer) -> str:
    weight = layer.projection.weight.name or ""
    return f"{layer.path}.weight" if layer.tied else weight


def _blocks(module: nn.Module, chosen: Chosen) -> dict[str, list[ChosenLayer]]:
    """Layers by the entry of an outermost nn.ModuleList that they belong to."""
    lists = [name for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
    found: dict[str, list[ChosenLayer]] = {}
    for layer in chosen.layers:
        for name in lists:  # outer ones come first
            prefix = f"{name}." if name else ""
            if layer.path.startswith(prefix) and layer.projection.by_output:
                number = layer.path.removeprefix(prefix).partition(".")[0]
                found.setdefault(f"{prefix}{number}", []).append(layer)
                break
    return found


class _Stage:
    """One block with what is tuned in it."""

    def __init__(
        self,
        module: nn.Module,
        path: str,
        layers: Sequence[ChosenLayer],
        found: Outcome,
        initializers: set[str],
    ) -> None:
        self._module = module
        self._path = path
        self._block = module.get_submodule(path)
        self._weights = {_name(layer): (layer.path, found.weights[layer.path]) for layer in layers}
        self._norms = {
            f"{path}.{name}": value.detach()
            for name, value in self._block.named_parameters()
            if _is_norm(self._block, name) and f"{path}.{name}" in initializers
        }
        grids = [(q.scale.float(), q.offset.float()) for _, q in self._weights.values()]
        self._grids = grids
        self._changes = [torch.zeros_like(part) for grid in grids for part in grid]
        self._changes += [torch.zeros_like(norm) for norm in self._norms.values()]

    def tune(
        self, parameters: Parameters, data: Calibration, epochs: int, rate: float
    ) -> dict[str, Any]:
        """Tune on the fitted batches; the errors before and after on those held out."""
        fitted = list(self._calls(parameters, data, data.fitted))
        judged = list(self._calls(parameters, data, data.held_out)) or fitted
        before = self._error(judged)
        for change in self._changes:
            change.requires_grad_(True)
        optimizer = torch.optim.Adam(self._changes, lr=rate, betas=BETAS, weight_decay=DECAY)
        steps = epochs * len(fitted)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        for _ in range(epochs):
            for call in fitted:
                optimizer.zero_grad(set_to_none=True)
                loss = self._loss(call, self._tuned()) / call.wanted.square().sum()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        for change in self._changes:
            change.requires_grad_(False)
        after = self._error(judged)
        return {"before": before, "after": min(after, before), "kept": after < before}

    def take(self, found: Outcome) -> Parameters:
        """Put the tuned values into `found`; the block's parameters as they are now."""
        changes = iter(self._changes)
        for (path, weight), (scale, offset) in zip(
            self._weights.values(), self._grids, strict=True
        ):
            a, b = next(changes), next(changes)
            tuned = replace(
                weight, scale=(scale * (1 + a)).double(), offset=(offset + scale * b).double()
            )
            found.weights[path] = tuned.as_stored()
        for (name, norm), change in zip(self._norms.items(), changes, strict=True):
            found.parameters[name] = _moved(norm, change).numpy()
        return {
            **{
                name: found.weights[path].dequantize().float()
                for name, (path, _) in self._weights.items()
            },
            **{name: torch.from_numpy(found.parameters[name]) for name in self._norms},
        }

    def _tuned(self) -> Parameters:
        """The block's parameters, by names relative to it, as functions of the changes."""
        changes = iter(self._changes)
        values: Parameters = {}
        for (name, (_, weight)), (scale, offset) in zip(
            self._weights.items(), self._grids, strict=True
        ):
            a, b = next(changes), next(changes)
            values[name] = _dequantize(weight, scale * (1 + a), offset + scale * b)
        for (name, norm), change in zip(self._norms.items(), changes, strict=True):
            values[name] = _moved(norm, change)
        return {name.removeprefix(f"{self._path}."): value for name, value in values.items()}

    def _calls(
        self, parameters: Parameters, data: Calibration, batches: Sequence[int]
    ) -> Iterator[_Call]:
        """How the block is called where all blocks before it are quantized."""

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args, kwargs)

        for index in batches:
            inputs = {n: torch.from_numpy(x) for n, x in data.batches[index].inputs.items()}
            hook = self._block.register_forward_pre_hook(stop, with_kwargs=True)
            try:
                with torch.no_grad():
                    functional_call(self._module, parameters, (), inputs)
                continue  # the block takes no part for such inputs
            except _Reached as reached:
                args, kwargs = reached.args
            finally:
                hook.remove()
            with torch.no_grad():
                wanted = _output(self._block(*args, **kwargs))
            yield _Call(args=args, kwargs=kwargs, wanted=wanted)

    def _loss(self, call: _Call, values: Parameters) -> Tensor:
        got = _output(functional_call(self._block, values, call.args, dict(call.kwargs)))
        return (got - call.wanted).square().sum()

    @torch.no_grad()
    def _error(self, calls: Sequence[_Call]) -> float:
        values = self._tuned()
        wrong = sum(float(self._loss(call, values)) for call in calls)
        return wrong / sum(float(call.wanted.square().sum()) for call in calls)


def _is_norm(block: nn.Module, name: str) -> bool:
    owner = block.get_submodule(name.rpartition(".")[0])
    return "norm" in type(owner).__name__.lower()


def _moved(norm: Tensor, change: Tensor) -> Tensor:
    return norm + norm.abs().mean() * change


def _dequantize(weight: Quantized, scale: Tensor, offset: Tensor) -> Tensor:
    return weight.codes * weight.by_input(scale) + weight.by_input(offset)


def _output(value: Any) -> Tensor:
    """What a block passes on: its result, or the first of several."""
    first: Tensor = value[0] if isinstance(value, tuple | list) else value
    return first
