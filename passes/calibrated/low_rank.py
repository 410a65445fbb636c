"""Low rank: a matrix becomes the product of two thinner ones, by weights alone or by data.

W [N, K] is replaced by A [N, r] B [r, K].  Of its weights alone, by the r largest singular values
(the start of PELA, Guo et al. 2024, arXiv:2310.10700).  By data, so that |X (W - A B)^T| is least
over the inputs X that the layer will see: with C = X^T X the eigenvectors U of W C W^T give A = U_r
and B = U_r^T W, the principal components of the outputs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.errors import PassError
from intaglio.passes import calibrating
from intaglio.passes.analysis.projections import Projection, projections, uses
from intaglio.passes.base import Calibrated, Context, PassResult
from intaglio.passes.calibration import Calibration

from ._chosen import is_head
from ._factors import put_factors
from ._moments import told
from ._narrow import weight_of
from ._tasks import Task, solutions

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Factored:
    """A [N, r] and B [r, K] of a layer, and the relative error of its outputs, if data told it."""

    left: Array
    right: Array
    error: float | None


class LowRank(Calibrated):
    """Replace matrices by products of two thinner ones, by weights or by data (SVD, PELA)."""

    ratio: float = 0.3
    """The part of a matrix' parameters that goes."""
    rank: int = 0
    """The rank of every layer instead; 0: as the ratio says."""
    ranks: dict[str, int] = field(default_factory=dict)
    """The rank of the layers that a glob fits, before the others."""
    by: Literal["data", "svd"] = "data"
    """By the outputs over data, or by the weights alone, which needs no data."""
    layers: list[str] = field(default_factory=lambda: ["*"])
    """Globs over module paths: what to factor."""
    skip: list[str] = field(default_factory=list)
    """Globs over module paths: what to leave whole."""
    head: bool = False
    """Factor the projection to the logits, too."""

    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Factor every chosen projection that gets smaller by it."""
        self.check_options(data=context.calibration is not None)
        left: dict[str, str] = {}
        chosen = [each for each in projections(model.graph) if self._takes(each, left)]
        if not chosen:
            words = "; ".join(f"{path}: {why}" for path, why in list(left.items())[:4])
            raise PassError(f"low-rank found nothing to factor ({words or 'no projections'}).")
        stages: list[dict[str, Any]] = []
        found = self._solve(model, context, chosen, stages)
        sizes = [each.outputs * each.inputs for each in chosen]
        layers = [_layer(each, found[each]) for each in chosen]
        factors: dict[str, list[str]] = {}
        for each in chosen:
            factors |= put_factors(model.graph, [each], found[each].right, [found[each].left])
        common.RemoveUnusedNodesPass()(model)
        after = sum(layer["parameters"] for layer in layers)
        advice = []
        if context.calibration is not None and self.by == "data":
            advice = told(context.calibration, {each.path: each.inputs for each in chosen})
        return PassResult(
            changed=True,
            notes=[*map(_note, layers), *(f"{p} stays whole: {why}" for p, why in left.items())],
            advice=advice,
            details={
                "layers": layers,
                "left": left,
                "parameters": [sum(sizes), after],
                "stages": stages,
                "factored": factors,
            },
        )

    def check_options(self, *, data: bool) -> None:
        """Refuse parts and ranks that there are not, and to learn from nothing."""
        if not 0 < self.ratio < 1:
            raise PassError(f"low-rank: ratio = {self.ratio} should be above 0 and below 1.")
        if self.rank < 0 or any(rank < 1 for rank in self.ranks.values()):
            raise PassError("low-rank: a rank should be at least 1.")
        if self.by == "data" and not data:
            raise PassError(
                "low-rank by data needs some to learn from: give rows of the model's inputs with "
                "--calib FILE.npz, text with --calib FILE.txt, or use by='svd', which needs none."
            )

    def _takes(self, layer: Projection, left: dict[str, str]) -> bool:
        path, rank = layer.path, self._rank(layer)
        if not any(fnmatchcase(path, glob) for glob in self.layers):
            left[path] = "not among layers"
        elif any(fnmatchcase(path, glob) for glob in self.skip):
            left[path] = "among skip"
        elif is_head(layer) and not self.head:
            left[path] = "it yields the logits; head=true factors it too"
        elif uses(layer.weight) != 1:
            left[path] = "its weight is used elsewhere, too"
        elif rank < 1:
            raise PassError(
                f"low-rank: of {path} [{layer.outputs}, {layer.inputs}] a ratio of {self.ratio} "
                f"leaves no rank. At most {1 - _cost(layer, 1):.3g} leaves one."
            )
        elif _cost(layer, rank) >= 1:
            left[path] = f"rank {rank} is no smaller than the matrix"
        return path not in left

    def _rank(self, layer: Projection) -> int:
        for glob, rank in self.ranks.items():
            if fnmatchcase(layer.path, glob):
                return min(rank, layer.outputs, layer.inputs)
        if self.rank:
            return min(self.rank, layer.outputs, layer.inputs)
        return int((1 - self.ratio) / _cost(layer, 1))

    def _solve(
        self,
        model: ir.Model,
        context: Context,
        chosen: list[Projection],
        stages: list[dict[str, Any]],
    ) -> dict[Projection, Factored]:
        """Factor layer by layer, each on the inputs that the layers before it leave."""
        with context.where.open() as pool:
            solve = partial(solutions, pool)
            if context.calibration is None:
                tasks = (partial(self._task, each, None) for each in chosen)
                return dict(zip(chosen, solve(tasks), strict=True))
            return self._by_data(model, context, context.calibration, chosen, stages, solve)

    def _by_data(
        self,
        model: ir.Model,
        context: Context,
        data: Calibration,
        chosen: Sequence[Projection],
        stages: list[dict[str, Any]],
        solve: Callable[[Iterable[Callable[[], Task]]], Iterator[Factored]],
    ) -> dict[Projection, Factored]:
        calibrating.check(model, context)
        stages.append(calibrating.stage("dense", model, context))
        run = calibrating.replay(model, context)
        found: dict[Projection, Factored] = {}
        try:
            for x, readers in groupby(chosen, key=lambda layer: layer.x):
                together = list(readers)
                path = together[0].path
                if context.progress is not None:
                    said = f"{self.name} {path}, {len(found) + 1} of {len(chosen)}"
                    context.progress(said, len(found) / len(chosen))
                run.run_to(together[0].node)
                seen = calibrating.statistics(run, x, data, path).fitted.numpy()
                tasks = (partial(self._task, each, seen) for each in together)
                for each, made in zip(together, solve(tasks), strict=True):
                    found[each] = made
                    run.weights[each.node] = _operand(each, made)
            stages.append({"stage": self.name, **calibrating.measure(run, model, context)})
        finally:
            run.close()
        return found

    def _task(self, layer: Projection, moment: Array | None) -> Task:
        return Task(factor, (weight_of(layer), self._rank(layer), moment, self.by == "svd"))


def factor(weight: Array, rank: int, moment: Array | None, svd: bool) -> Factored:
    """A weight [N, K] as two factors; `moment`, X^T X / tokens, tells the error if there is one."""
    if svd or moment is None:
        left, right = by_weights(weight, rank)
    else:
        left, right = by_outputs(weight, moment, rank)
    if moment is None:
        return Factored(left=left, right=right, error=None)
    wrong = left @ right - weight
    whole = float(np.einsum("nk,kl,nl->", weight, moment, weight, optimize=True))
    lost = float(np.einsum("nk,kl,nl->", wrong, moment, wrong, optimize=True))
    return Factored(left=left, right=right, error=lost / max(whole, 1e-300))


def by_weights(weight: Array, rank: int) -> tuple[Array, Array]:
    """The nearest product of that rank: A [N, r] and B [r, K], singular values on both sides."""
    u, s, v = np.linalg.svd(weight, full_matrices=False)
    root = np.sqrt(s[:rank])
    return u[:, :rank] * root, root[:, None] * v[:rank]


def by_outputs(weight: Array, moment: Array, rank: int) -> tuple[Array, Array]:
    """The product of that rank whose outputs are nearest, `moment` being X^T X / tokens [K, K]."""
    _, vectors = np.linalg.eigh(weight @ moment @ weight.T)
    left = vectors[:, ::-1][:, :rank]
    return left, left.T @ weight


def _cost(layer: Projection, rank: int) -> float:
    """Parameters of the product as a part of those of the matrix."""
    return rank * (layer.outputs + layer.inputs) / (layer.outputs * layer.inputs)


def _operand(layer: Projection, found: Factored) -> Array:
    """The product as the layer's node takes it."""
    weight = (found.left @ found.right).astype(np.float32)
    turned = layer.node.attributes.get("transB")
    return weight if turned is not None and turned.value else np.ascontiguousarray(weight.T)


def _layer(layer: Projection, found: Factored) -> dict[str, Any]:
    rank = found.left.shape[1]
    return {
        "path": layer.path,
        "outputs": layer.outputs,
        "inputs": layer.inputs,
        "rank": rank,
        "parameters": rank * (layer.outputs + layer.inputs),
        "error": found.error,
    }


def _note(layer: Mapping[str, Any]) -> str:
    error = "" if layer["error"] is None else f", error {layer['error']:.2e}"
    return (
        f"{layer['path']}: rank {layer['rank']} of [{layer['outputs']}, {layer['inputs']}]{error}"
    )
