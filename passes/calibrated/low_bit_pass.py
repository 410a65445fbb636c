"""What rtn, gptq and decoupleq share: layers in order, each on the inputs it will really see.

Layers that read the same value share one X^T X, gathered by running the graph with all earlier
layers quantized already; their rows are quantized together.  Every layer's relative error
|X (W' - W)^T|^2 / |X W^T|^2 is reported, on data that was fitted and on data that was held out.
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor

from intaglio.errors import PassError
from intaglio.passes import calibrating
from intaglio.passes.analysis.projections import look_ups, uses
from intaglio.passes.base import Calibrated, Context, PassResult
from intaglio.passes.calibrating import Statistics
from intaglio.passes.graph import Emitter, replace_uses
from intaglio.passes.low_bit import LowBitWeight, add_weight, look_up, product
from intaglio.passes.own_ops import define
from intaglio.passes.replay import Replay

from ._affine import Quantized, groups_of, relative_error
from ._chosen import Chosen, ChosenLayer, check_layer_options, plan
from ._work import Work

Array = npt.NDArray[Any]


@dataclass(kw_only=True)
class Outcome:
    """What a pass has found so far: a weight per layer, new contents of other parameters, facts."""

    weights: dict[str, Quantized] = field(default_factory=dict)
    parameters: dict[str, Array] = field(default_factory=dict)
    errors: dict[str, dict[str, float | None]] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)


class LowBit(Calibrated, abc.ABC):
    """Quantize projections to affine codes of few bits."""

    bits: int = 2
    """Bits of a code: 2, 3, 4 or 8."""
    group: int = 64
    """How many inputs share a scale and an offset; -1: all of a row."""
    layers: list[str] = field(default_factory=lambda: ["*"])
    """Globs over module paths: what to quantize."""
    skip: list[str] = field(default_factory=list)
    """Globs over module paths: what to leave in float."""
    head: bool = False
    """Quantize the projection to the logits, too."""
    embeddings: bool = False
    """With a head that is quantized, also the table of embeddings that is tied to it."""
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Other bits and group for the paths that a glob fits."""

    needs_data: ClassVar[bool] = True

    @abc.abstractmethod
    def solve(
        self, weight: Tensor, statistics: Statistics | None, bits: int, group: int
    ) -> Quantized:
        """Quantize a weight [N, K], float64."""

    def refine(self, model: ir.Model, context: Context, chosen: Chosen, found: Outcome) -> bool:  # noqa: ARG002
        """Improve on `found` once all layers are quantized; tell whether anything changed."""
        return False

    def check_options(self, *, data: bool) -> None:
        """Refuse bits and groups that there are not, and to learn from nothing."""
        for override in ({}, *self.overrides.values()):
            options = {"bits": self.bits, "group": self.group, **override}
            check_layer_options(self.name, options)
        if self.needs_data and not data:
            raise PassError(
                f"{self.name} needs data to learn from: give rows of the model's inputs with "
                "--calib FILE.npz, text with --calib FILE.txt, or use rtn, which needs none."
            )

    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Quantize every chosen projection and put the low-bit operator in its place."""
        self.check_options(data=context.calibration is not None)
        chosen = plan(
            model.graph,
            bits=self.bits,
            group=self.group,
            layers=self.layers,
            skip=self.skip,
            head=self.head,
            overrides=self.overrides,
            who=self.name,
            elsewhere=context.modules,
        )
        if not chosen.layers:
            return PassResult(changed=False, notes=_notes(chosen, Outcome()))
        found = Outcome()
        if context.calibration is not None:
            self._calibrate(model, context, chosen, found)
        else:
            for layer in chosen.layers:
                weight = _weight(layer)
                solved = self.solve(weight, None, layer.bits, layer.group).as_stored()
                found.weights[layer.path] = solved
                error = relative_error(solved.dequantize() - weight, weight, None)
                found.errors[layer.path] = {"weight": error}
        tables = _rewrite(model, chosen, found, tables=self.embeddings)
        return PassResult(
            changed=True,
            notes=[*_notes(chosen, found), *map(_note_of_table, tables)],
            advice=found.advice,
            details=_details(context, chosen, found),
        )

    def _calibrate(self, model: ir.Model, context: Context, chosen: Chosen, found: Outcome) -> None:
        data = context.calibration
        assert data is not None
        calibrating.check(model, context)
        facts = {"pass": self.name, "options": self._facts(), "data": data.sha256}
        work = Work(context.work, model, facts)
        found.stages.append(_stage("float", calibrating.replay(model, context), model, context))
        run = calibrating.replay(model, context)
        try:
            for index, together in enumerate(chosen.by_input):
                if context.progress is not None:
                    count = len(chosen.by_input)
                    said = f"{self.name} {together[0].path}, {index + 1} of {count}"
                    context.progress(said, index / count)
                self._quantize(run, together, context, found, work)
            found.stages.append(_stage("layers", run, model, context))
        finally:
            run.close()
        found.advice += _few_tokens(chosen, data.tokens(data.fitted))
        if self.refine(model, context, chosen, found):
            run = calibrating.replay(model, context)
            _substitute(run, chosen, found)
            found.stages.append(_stage("blocks", run, model, context))
            run.close()

    def _facts(self) -> dict[str, Any]:
        """The options that a layer's result depends on; which layers there are, tells the chain."""
        choice = {"layers", "skip", "head", "embeddings", "overrides", "bits", "group"}
        options = asdict(self)
        return {name: value for name, value in options.items() if name not in choice}

    def _quantize(
        self,
        run: Replay,
        together: Sequence[ChosenLayer],
        context: Context,
        found: Outcome,
        work: Work,
    ) -> None:
        """Quantize the layers that read one value, or take what an earlier run has found."""
        sizes = [[layer.path, layer.bits, layer.group] for layer in together]
        work.advance({"layers": sizes})
        kept = work.load()
        if kept is None:
            kept = {}
            x, path = together[0].projection.x, together[0].path
            run.run_to(together[0].projection.node)
            assert context.calibration is not None
            statistics = calibrating.statistics(run, x, context.calibration, path)
            for sizes_ in dict.fromkeys((layer.bits, layer.group) for layer in together):
                alike = [layer for layer in together if (layer.bits, layer.group) == sizes_]
                kept |= self._solve_together(alike, statistics)
            work.save(kept)
        for layer in together:
            solved = _restore(layer, kept)
            found.weights[layer.path] = solved
            errors = kept[f"{layer.path} errors"].tolist()
            found.errors[layer.path] = {
                "fitted": errors[0],
                "held_out": None if np.isnan(errors[1]) else errors[1],
            }
            run.weights[layer.projection.node] = _operand(layer, solved)

    def _solve_together(
        self, layers: Sequence[ChosenLayer], statistics: Statistics
    ) -> dict[str, Array]:
        """Quantize layers of the same inputs as the rows of one matrix."""
        weights = [_weight(layer) for layer in layers]
        bits, group = layers[0].bits, layers[0].group
        solved = self.solve(torch.cat(weights), statistics, bits, group).as_stored()
        kept: dict[str, Array] = {}
        first = 0
        for layer, weight in zip(layers, weights, strict=True):
            end = first + len(weight)
            arrays = {"codes": solved.codes, "scale": solved.scale, "offset": solved.offset}
            kept |= {f"{layer.path} {k}": x[first:end].numpy() for k, x in arrays.items()}
            wrong = solved.dequantize()[first:end] - weight
            seen = [statistics.fitted, statistics.held_out]
            kept[f"{layer.path} errors"] = np.array(
                [np.nan if h is None else relative_error(wrong, weight, h) for h in seen]
            )
            first = end
        return kept


def _weight(layer: ChosenLayer) -> Tensor:
    """The float weight [N, K] in float64."""
    tensor = layer.projection.weight.const_value
    assert tensor is not None
    weight = torch.from_numpy(tensor.numpy().astype(np.float64))
    return weight if layer.projection.by_output else weight.T.contiguous()


def _restore(layer: ChosenLayer, kept: Mapping[str, Array]) -> Quantized:
    codes, scale, offset = (
        torch.from_numpy(kept[f"{layer.path} {part}"]) for part in ("codes", "scale", "offset")
    )
    size, _ = groups_of(layer.group, codes.shape[1])
    return Quantized(codes=codes, scale=scale, offset=offset, bits=layer.bits, group=size)


def _operand(layer: ChosenLayer, solved: Quantized) -> Array:
    """The dequantized weight as the layer's node takes it."""
    weight: Array = solved.dequantize().float().numpy()
    turned = layer.projection.node.attributes.get("transB")
    return weight if turned is not None and turned.value else np.ascontiguousarray(weight.T)


def _substitute(run: Replay, chosen: Chosen, found: Outcome) -> None:
    for layer in chosen.layers:
        run.weights[layer.projection.node] = _operand(layer, found.weights[layer.path])
    run.replaced |= found.parameters


def _stage(name: str, run: Replay, model: ir.Model, context: Context) -> dict[str, Any]:
    return {"stage": name, **calibrating.measure(run, model, context)}


def _rewrite(model: ir.Model, chosen: Chosen, found: Outcome, *, tables: bool) -> list[str]:
    """Put the low-bit operators in; with `tables`, for Gather too; tell of which embeddings."""
    graph, looked_up = model.graph, []
    for layer in chosen.layers:
        projection, solved = layer.projection, found.weights[layer.path]
        weight = LowBitWeight.of(
            solved.codes.numpy(),
            solved.scale.float().numpy(),
            solved.offset.float().numpy(),
            bits=solved.bits,
            group=solved.group,
        )
        tied = tables and layer.tied and projection.by_output
        rows = look_ups(projection.weight) if tied else []
        alone = uses(projection.weight) == 1 + len(rows)  # nothing is left that is float
        name = projection.weight.name or "" if alone else f"{layer.path}.weight"
        emit = Emitter(projection.node)
        turned = alone and not projection.by_output
        stands_for = (projection.weight.name or name, not projection.by_output)
        values = add_weight(graph, name, weight, turned=turned, stands_for=stands_for)
        x = projection.node.inputs[0]  # of another node than before, where that was a projection
        assert x is not None
        for node in rows if alone else []:
            replace_uses(node.outputs[0], look_up(Emitter(node), node, values, weight))
            graph.remove(node, safe=True)
            looked_up.append(name)
        result = product(emit, x, values, weight, projection.bias)
        replace_uses(projection.node.outputs[0], result)
        graph.remove(projection.node, safe=True)
    for name, array in found.parameters.items():
        graph.initializers[name].const_value = ir.tensor(array, name=name)
    common.RemoveUnusedNodesPass()(model)
    define(model)
    return looked_up


def _note_of_table(name: str) -> str:
    return (
        f"{name} is looked up in the same codes; errors and perplexities are measured before that."
    )


def _notes(chosen: Chosen, found: Outcome) -> list[str]:
    notes = [
        f"{layer.path}: {layer.bits} bits, "
        + ", ".join(
            f"{what.replace('_', ' ')} error {error:.2e}"
            for what, error in found.errors[layer.path].items()
            if error is not None
        )
        for layer in chosen.layers
    ]
    return [*notes, *(f"{path} stays in float: {why}" for path, why in chosen.skipped.items())]


def _few_tokens(chosen: Chosen, tokens: int) -> list[str]:
    wide = [layer.path for layer in chosen.layers if layer.projection.inputs > tokens]
    if not wide:
        return []
    others = f" and {len(wide) - 1} more layers" if len(wide) > 1 else ""
    note = (
        f"The calibration data has {tokens} tokens to fit to, fewer than the inputs of {wide[0]}"
        f"{others}: what is fitted to so few does not carry over. Give more data."
    )
    return [note]


def _details(context: Context, chosen: Chosen, found: Outcome) -> dict[str, Any]:
    data = context.calibration
    calibration = data and {
        "sha256": data.sha256,
        "tokens": data.tokens(data.fitted),
        "held_out_tokens": data.tokens(data.held_out),
    }
    layers = [
        {
            "path": layer.path,
            "bits": layer.bits,
            "group": found.weights[layer.path].group,
            "outputs": layer.projection.outputs,
            "inputs": layer.projection.inputs,
            "errors": found.errors[layer.path],
        }
        for layer in chosen.layers
    ]
    return {
        "calibration": calibration,
        "layers": layers,
        "skipped": dict(chosen.skipped),
        "stages": found.stages,
        "blocks": found.blocks,
        "tuned": sorted(found.parameters),
    }
