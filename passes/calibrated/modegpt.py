"""MoDeGPT: channels that two matrices share are reduced so that their product stays, on data.

Lin et al. 2024, arXiv:2408.09632.  Of the dense graph on calibration data, in float64:

* feed-forward, Nystrom: with C = a^T a of the channels a, those with the largest ridge leverage
  [C (C + lam I)^-1]_ii stay, and the last matrix becomes C[S,S]^-1 C[S,:] W_D;
* queries and keys, CR: channels, in pairs where positions turn them, with the largest
  sum over query heads of E[q_i^2] E[k_i^2] stay, others for each head of keys; the scale of
  scores stays that of the dense model;
* values and output: with G = v^T v of a head, the best product of rank k for all query heads that
  share it.  G = V S^2 V^T and U of the left singular vectors of S V^T W_O give v V S^-1 U_k and
  U_k^T S V^T W_O, which needs the moments of values alone, their bias included.

How much each block loses follows from its importance s = 1 - cos of its input and output:
phi = L ratio softmax(-s / eps), no more than 0.8 each; of fewer than eight blocks all lose alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.errors import PassError
from intaglio.passes import calibrating
from intaglio.passes.analysis.pairs_of_matrices import block_of
from intaglio.passes.base import Calibrated, Context, PassResult
from intaglio.passes.exact.fold_repeated_heads import FoldRepeatedHeads
from intaglio.passes.graph import constant

from ._moments import importance, moments, told
from ._narrow import Ledger
from ._shared_channels import MLP, SCORES, VALUES, How, Part, parts_of
from ._tasks import solutions

MOST = 0.8  # of a block's channels that it loses at most, by importance
DEEP = 8  # blocks from which importance decides
SHOWN = 6  # parts in a message


class Modegpt(Calibrated):
    """Give feed-forwards and heads fewer channels, by data and without training (MoDeGPT)."""

    ratio: float = 0.3
    """The part of the channels that goes, in the mean over blocks."""
    modules: list[str] = field(default_factory=lambda: [MLP, SCORES, VALUES])
    """What is compressed: mlp, qk, vo."""
    allocation: Literal["auto", "uniform", "importance"] = "auto"
    """How much each block loses; auto: by importance from 8 blocks on."""
    eps: float = 0.1
    """The temperature of importance: the larger, the more alike."""
    ridge: float = 1e-2
    """Of leverage scores, as a part of the mean square of channels."""
    multiple: int = 1
    """Widths are rounded to multiples of this, where they are no smaller."""
    layers: list[str] = field(default_factory=lambda: ["*"])
    """Globs over module paths: what to compress."""
    skip: list[str] = field(default_factory=list)
    """Globs over module paths: what to leave as it is."""
    by: Literal["data", "magnitude"] = "data"
    """Magnitude: by the sizes of weights, with no repair: what to compare with."""

    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Compress every module that is found."""
        self.check_options(data=context.calibration is not None)
        if context.calibration is not None:
            calibrating.check(model, context)
        FoldRepeatedHeads().rewrite(model)
        common.RemoveUnusedNodesPass()(model)  # what repeated heads read them, too
        left: dict[str, str] = {}
        every = list(parts_of(model, left, How(by=self.by, ridge=self.ridge)))
        parts = [each for each in every if self._chosen(each)]
        if not parts:
            raise PassError(f"modegpt found nothing to compress. {_others(every, left)}".strip())
        lost, allocation = self._lost(model, context, parts)
        wanted = [each for part in parts for each in part.wanted]
        found = {}
        stages = []
        if context.calibration is not None:
            stages.append(calibrating.stage("dense", model, context))
            found = moments(model, context, wanted, self.name)
        dense = model.clone()
        widths = {id(part): self._width(part, lost[_block(part)]) for part in parts}
        ledger = Ledger()
        before = _parameters(parts)
        fewer = [part for part in parts if widths[id(part)] < part.channels]
        tasks = (partial(part.task, widths[id(part)], found) for part in fewer)
        with context.where.open() as pool:
            solved = zip(fewer, solutions(pool, tasks), strict=True)
            errors = {id(part): part.shrink(solution, ledger) for part, solution in solved}
        layers = [_layer(part, widths[id(part)], errors.get(id(part), 0.0)) for part in parts]
        common.RemoveUnusedNodesPass()(model)
        after = _parameters(parts)
        if context.calibration is not None:
            stages.append(calibrating.stage(self.name, model, context, dense))
        advice = []
        if context.calibration is not None:
            advice = told(context.calibration, {p.path: p.channels for p in parts})
        return PassResult(
            changed=bool(ledger.placed),
            notes=[*map(_note, layers), *(f"{p} stays as it is: {why}" for p, why in left.items())],
            advice=advice,
            details={
                "calibration": _calibration(context),
                "allocation": allocation,
                "lost": lost,
                "parameters": [before, after],
                "layers": layers,
                "left": left,
                "stages": stages,
                "placed": ledger.placed,
                "kept_in_caches": ledger.caches,
            },
        )

    def check_options(self, *, data: bool) -> None:
        """Refuse parts and modules that there are not, and to learn from nothing."""
        if not 0 <= self.ratio < 1:
            raise PassError(f"modegpt: ratio = {self.ratio} should be at least 0 and below 1.")
        unknown = set(self.modules) - {MLP, SCORES, VALUES}
        if unknown or not self.modules:
            raise PassError(f"modegpt: modules may be mlp, qk and vo, not {sorted(unknown)}.")
        if self.multiple < 1 or self.eps <= 0 or self.ridge <= 0:
            raise PassError("modegpt: multiple, eps and ridge should be above 0.")
        if self.by == "data" and not data:
            raise PassError(
                "modegpt needs data to learn from: give rows of the model's inputs with "
                "--calib FILE.npz, or text with --calib FILE.txt."
            )

    def _chosen(self, part: Part) -> bool:
        fits = any(fnmatchcase(part.path, glob) for glob in self.layers)
        return (
            part.kind in self.modules
            and fits
            and not any(fnmatchcase(part.path, glob) for glob in self.skip)
        )

    def _lost(
        self, model: ir.Model, context: Context, parts: Sequence[Part]
    ) -> tuple[dict[str, float], str]:
        """The part of its channels that each block loses."""
        blocks = list(dict.fromkeys(_block(part) for part in parts))
        uniform = dict.fromkeys(blocks, self.ratio)
        if self.allocation == "uniform" or (self.allocation == "auto" and len(blocks) < DEEP):
            return uniform, "uniform"
        scores = None
        if context.calibration is not None and len(blocks) > 1:
            scores = importance(model, context, blocks)
        if scores is None:
            return uniform, "uniform, since the streams between blocks were not found"
        return dict(zip(blocks, allocate(scores, self.ratio, self.eps), strict=True)), "importance"

    def _width(self, part: Part, lost: float) -> int:
        """How many channels stay."""
        unit = (
            part.unit * self.multiple if part.channels >= part.unit * self.multiple else part.unit
        )
        kept = round(part.channels * (1 - lost) / unit) * unit
        if lost == 0:
            kept = part.channels
        if kept < 1:
            most = 1 - part.unit / part.channels
            raise PassError(
                f"modegpt: of the {part.channels} channels of {part.path} ({part.kind}) a ratio of "
                f"{lost:.3g} leaves none. At most {most:.3g} leaves one."
            )
        return min(kept, part.channels)


def allocate(scores: Sequence[float], ratio: float, eps: float, most: float = MOST) -> list[float]:
    """Phi = L ratio softmax(-s / eps), what exceeds `most` being given to the others.

    Args:
        scores: the importance of each block.
        ratio: the mean of what is returned; where it is above `most`, all lose that much.
        eps: the temperature, in units of the mean score.
        most: of any block.
    """
    s = np.asarray(scores, np.float64)
    scale = max(float(s.mean()), 1e-30) * eps * 10
    phi = np.full(len(s), ratio)
    if ratio >= most:
        return [float(x) for x in phi]
    full = np.zeros(len(s), bool)
    for _ in range(len(s)):
        left = len(s) * ratio - most * full.sum()
        weight = np.where(full, 0, np.exp(-np.maximum(s - s[~full].min(), 0) / scale))
        phi = np.where(full, most, left * weight / weight.sum())
        over = (phi > most) & ~full
        if not over.any():
            break
        full |= over
    return [float(x) for x in phi]


def _parameters(parts: Sequence[Part]) -> int:
    """Those of all matrices, each once: one may stand between two feed-forwards."""
    weights = {weight: constant(weight) for part in parts for weight in part.weights}
    return sum(array.size for array in weights.values() if array is not None)


def _block(part: Part) -> str:
    return block_of(part.path) or part.path


def _layer(part: Part, width: int, error: float) -> dict[str, Any]:
    return {
        "path": part.path,
        "kind": part.kind,
        "channels": [part.channels, width],
        "heads": part.heads,
        "parameters": [part.parameters * part.channels, part.parameters * width],
        "error": None if np.isnan(error) else error,
    }


def _note(layer: Mapping[str, Any]) -> str:
    before, after = layer["channels"]
    error = "" if layer["error"] is None else f", error {layer['error']:.2e}"
    return f"{layer['path']} ({layer['kind']}): {after} of {before} channels{error}"


def _calibration(context: Context) -> dict[str, Any] | None:
    data = context.calibration
    return data and {  # type: ignore[return-value]
        "sha256": data.sha256,
        "tokens": data.tokens(data.fitted),
        "held_out_tokens": data.tokens(data.held_out),
    }


def _others(every: Sequence[Part], left: Mapping[str, str]) -> str:
    """What was found and not asked for, and what cannot be compressed."""
    words = [f"{path} stays as it is: {why}." for path, why in left.items()]
    if every:
        found = ", ".join(f"{part.path} ({part.kind})" for part in every[:SHOWN])
        more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
        words.insert(0, f"By modules, layers and skip it leaves out {found}{more}.")
    return " ".join(words)
