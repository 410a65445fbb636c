"""The error that ONNX Runtime makes beside quantization, of layers and of whole models."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from evidence import Row

import intaglio
from intaglio.exporter.proving.parity import ParityReport
from intaglio.exporter.proving.quantized import KL, KL_LIMIT
from intaglio.exporter.proving.rounding import INT8
from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.calibration import Calibration
from intaglio.passes.low_bit import low_bit_nodes, weight_of
from intaglio.passes.lower._block_format import to_blocks
from intaglio.passes.lower.ort_low_bit import Accuracy, OrtLowBit

CHECKPOINTS = Path(__file__).parents[1] / "models" / "checkpoints"
MODELS, WHOLE = ("llama", "gated_deltanet", "gla"), "rtn:bits=2,group=64"
WAYS: tuple[Accuracy, ...] = get_args(Accuracy)
TARGETS: dict[Accuracy, float] = {"auto": 1e-2, "fine": 1e-3, "exact": 1e-5}
ROUNDED = "activations rounded, all else in float64"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Implementation:
    """The worst layer's error by accuracy, and how many products auto computes in two parts."""

    errors: Mapping[str, float]
    in_two_parts: str


def implementation(model: ir.Model, data: Calibration) -> Implementation:
    """The worst layer's errors in ONNX Runtime, over what is held out."""
    nodes = list(low_bit_nodes(model))
    inputs = {str(value.name): value for value in (node.inputs[0] for node in nodes) if value}
    part = evaluate.part(model, list(inputs.values()))
    found = [evaluate.run(part, data.batches[index].inputs) for index in data.held_out]
    given = {name: np.concatenate([arrays[name] for arrays in found]) for name in inputs}
    wanted, errors = {}, {ROUNDED: 0.0}
    for node in nodes:
        x, y, weight = _ends(node)[0], _ends(node)[1], weight_of(node)
        matrix = weight.dequantize().astype(np.float64).T
        wanted[x, y] = given[x].astype(np.float64) @ matrix
        rounded = _rounded(given[x], to_blocks(weight).block) @ matrix
        errors[ROUNDED] = max(errors[ROUNDED], _error(rounded, wanted[x, y]))
    parts = ""
    for way in WAYS:
        lowered = model.clone()
        details = OrtLowBit(accuracy=way).run(lowered, Context(calibration=data)).details
        errors[way] = max(_error(_layer(lowered, *k, given[k[0]]), y) for k, y in wanted.items())
        parts = "{} of {}".format(*details["in_two_parts"]) if way == "auto" else parts
    return Implementation(errors=errors, in_two_parts=parts)


def _ends(node: ir.Node) -> tuple[str, str]:
    """Names of what a product takes and makes."""
    value = node.inputs[0]
    assert value is not None
    return str(value.name), str(node.outputs[0].name)


def _layer(model: ir.Model, x: str, y: str, array: Array) -> Array:
    """`y` of a lowered graph for an array in place of `x`."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= {value.name: value for value in model.graph.inputs}
    layer = evaluate.part(model, [values[y]], given=[values[x]])
    return next(iter(evaluate.run(layer, {x: array}, optimize=True).values()))


def _error(got: Array, wanted: Array) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def _rounded(x: Array, block: int) -> Array:
    """`x` [..., K] with each block of `block` columns rounded to 8 bits, as the kernel does."""
    width = x.shape[-1]
    blocks = np.pad(x.astype(np.float64), [(0, 0)] * (x.ndim - 1) + [(0, -width % block)])
    blocks = blocks.reshape(*x.shape[:-1], -1, block)
    scale = np.maximum(np.abs(blocks).max(-1, keepdims=True), 1e-30) / 127
    rounded: Array = (np.round(blocks / scale) * scale).reshape(*x.shape[:-1], -1)[..., :width]
    return rounded


def implementation_rows(group: str, found: Sequence[Implementation]) -> Iterator[Row]:
    """A row for each accuracy."""
    for way in WAYS:
        value, most = max(each.errors[way] for each in found), TARGETS.get(way)
        note = "worst of all layers, ways to quantize and seeds"
        if way == "fast":
            note += f"; rounding alone makes {max(each.errors[ROUNDED] for each in found):.1e}"
        if way == "auto":
            note += f"; products in two parts: {_span([each.in_two_parts for each in found])}"
        yield Row(name=f"{way}, {group}: implementation error of a layer", value=value,
                  unit="of the largest", target=None if most is None else f"<= {most:.0e}",
                  holds=None if most is None else value <= most, note=note)  # fmt: skip


def _span(counts: Sequence[str]) -> str:
    """The least and the most of texts such as 3 of 28."""
    ordered = sorted(set(counts), key=lambda text: int(text.split()[0]))
    return ordered[0] if len(ordered) == 1 else f"{ordered[0].split()[0]} to {ordered[-1]}"


def whole(name: str, steps: int) -> list[Row]:
    """Rows of a trained checkpoint, exported as by default and with activations rounded once."""
    torch.set_num_threads(1)
    source = CHECKPOINTS / f"{name}.pt"
    with tempfile.TemporaryDirectory() as folder:
        default, fast = Path(folder) / "default", Path(folder) / "fast"
        report = intaglio.export(source, default, passes=[WHOLE], steps=steps).parity
        intaglio.export(source, fast, passes=[WHOLE], ort_accuracy="fast", verify=False)
        again = intaglio.verify(fast, source, steps=steps, keep=False)
    return [
        *_compared(name, "default", report, (INT8, KL_LIMIT)),
        *_compared(name, "fast", again, (None, None)),
    ]


def _compared(
    name: str, way: str, report: ParityReport | None, limits: tuple[float | None, float | None]
) -> Iterator[Row]:
    assert report is not None
    errors = {row.found.name: 0.0 for row in report.rows}
    for row in report.rows:
        errors[row.found.name] = max(errors[row.found.name], row.found.error)
    kl = errors.pop(KL)
    worst = max(errors, key=lambda stream: errors[stream])
    note = f"{report.steps} random tokens, accuracy {report.accuracy}"
    rows = ((errors[worst], "error of outputs and states", "of the largest", f"; {worst}"),
            (kl, "mean divergence of next tokens", "nats", ""))  # fmt: skip
    for (value, what, unit, more), most in zip(rows, limits, strict=True):
        yield Row(name=f"{name}, {WHOLE}, {way}: {what}", value=value, unit=unit,
                  target=None if most is None else f"<= {most:.0e}",
                  holds=None if most is None else value <= most, note=note + more)  # fmt: skip
