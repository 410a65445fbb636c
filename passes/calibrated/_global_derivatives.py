"""Derivatives of a module's outputs by what its projections yield, for the global basis.

Of z, what all projections of one value yield together, E[sum_o J_o^T J_o] of the Jacobians of all
outputs o, at all later tokens too, is the mean of g g^T of g = d(p . outputs)/dz over probes p of
entries +1 and -1: one backward pass a probe.  Padding is no output.  Products are in float64.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from intaglio.errors import PassError
from intaglio.passes.analysis.projections import Projection, uses
from intaglio.passes.base import Context
from intaglio.passes.calibration import Batch

from ._junctions import Junction
from ._of_module import other_weight
from ._work import Work

Array = npt.NDArray[Any]


def derivative_moments(
    model: ir.Model, junctions: Sequence[Junction], context: Context, probes: int, who: str
) -> dict[Junction, Array]:
    """E[J^T J] [sum N, sum N] by what the readers of each junction yield, in their order.

    Raises:
        PassError: the source is no PyTorch module or was changed by an earlier pass, or a reader is
            no layer of it by itself.
    """
    module, data = context.module, context.calibration
    assert data is not None
    layers = {p: _layer(module, p, who) for j in junctions for p in j.readers}
    other = other_weight(module, model)
    if other:
        raise PassError(
            f"{who}: an earlier pass changed {other}, so that derivatives of the source's module "
            f"are those of another model. Put --pass {who} first, or take form='local'."
        )
    work = Work(context.work, model, {"pass": who, "data": data.sha256})
    work.advance({"derivatives": [j.readers[0].path for j in junctions], "probes": probes})
    kept = work.load()
    if kept is None:
        sums = [np.zeros((sum(p.outputs for p in j.readers),) * 2) for j in junctions]
        counts = [0] * len(sums)
        for count, index in enumerate(data.fitted):
            if context.progress is not None:
                said = f"{who} derivatives, batch {count + 1} of {len(data.fitted)}"
                context.progress(said, count / len(data.fitted))
            batch = data.batches[index]
            for found in _gradients(module, layers, batch, probes, index):
                for place, junction in enumerate(junctions):
                    g = np.concatenate([found[p] for p in junction.readers], axis=1)
                    sums[place] += g.T @ g
                    counts[place] += len(g)
        kept = {str(i): total / counts[i] for i, total in enumerate(sums)}
        work.save(kept)
    return {junction: kept[str(i)] for i, junction in enumerate(junctions)}


def _layer(module: Any, reader: Projection, who: str) -> nn.Linear:
    if not isinstance(module, nn.Module):
        raise PassError(
            f"{who}: the source is no PyTorch module, of which derivatives of outputs are taken. "
            "Take form='local', which needs the graph alone."
        )
    name = reader.weight.name or ""
    owner = dict(module.named_modules()).get(name.removesuffix(".weight"))
    if not isinstance(owner, nn.Linear) or uses(reader.weight) != 1:
        raise PassError(
            f"{who}: {reader.path} is no torch.nn.Linear of the module with a weight of its own "
            f"({name!r}), where derivatives could be taken. Leave what reads the same value out by "
            "skip, or take form='local'."
        )
    return owner


def _gradients(
    module: nn.Module,
    layers: Mapping[Projection, nn.Linear],
    batch: Batch,
    probes: int,
    seed: int,
) -> Iterator[dict[Projection, Array]]:
    """Of each probe, by projection, the gradients at all tokens, [tokens, N]."""
    given: dict[nn.Module, Tensor] = {}

    def follow(layer: nn.Module, _: Any, made: Tensor) -> Tensor:
        z = made if made.requires_grad else made.detach().requires_grad_()
        given[layer] = z
        return z

    hooks = [layer.register_forward_hook(follow) for layer in set(layers.values())]
    try:
        with torch.enable_grad():
            made = module(**{n: torch.from_numpy(x) for n, x in batch.inputs.items()})
    finally:
        for hook in hooks:
            hook.remove()
    outputs = [x for x in tree_leaves(made) if isinstance(x, Tensor) and x.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    wanted = list(given)
    for probe in range(probes):
        signs = [_signs(x, batch, generator) for x in outputs]
        found = torch.autograd.grad(
            outputs,
            [given[layer] for layer in wanted],
            signs,
            retain_graph=probe + 1 < probes,
            allow_unused=True,
        )  # None where no output follows from it
        by_layer = dict(zip(wanted, found, strict=True))
        yield {p: _entries(by_layer[layer], given[layer], batch) for p, layer in layers.items()}


def _signs(output: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
    """+1 and -1 at random, 0 where the output is that of padding."""
    signs = torch.randint(2, output.shape, generator=generator).to(output.dtype) * 2 - 1
    if batch.lengths is not None and output.shape[:2] == (batch.rows, batch.steps):
        there = torch.arange(batch.steps) < torch.from_numpy(batch.lengths)[:, None]
        signs = signs * there.reshape(*there.shape, *(1,) * (output.dim() - 2))
    return signs


def _entries(gradient: Tensor | None, z: Tensor, batch: Batch) -> Array:
    found = torch.zeros_like(z) if gradient is None else gradient
    return batch.valid(found.detach().numpy().astype(np.float64))
