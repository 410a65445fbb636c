"""What 2 bits cost a trained language model, by rounding, GPTQ and decoupleQ.

    python benchmarks/low_bit_accuracy.py [--quick] [--json]

The trained Llama checkpoint is quantized with groups of 32 inputs and with one group per row,
calibrated on rows of its training text that a seed draws; every figure is a mean over the seeds.
Perplexity per byte is over text that the model was not trained on: the modules held out and the
packages of Python's standard library.  Layer errors are |X (W' - W)^T|^2 / |X W^T|^2 on rows of the
calibration data that nothing was fitted to, X as the quantized layers before leave it.

The error of the implementation is that of the lowered product of one layer in ONNX Runtime, for
each accuracy (`--ort-accuracy`), max|Y' - Y| / max|Y|, Y = X W'^T in float64; beside that of
activations rounded to 8 bits (fast) stands what rounding them alone makes.  That of whole models is
what a default export states, of trained checkpoints on random tokens, and what fast makes there.
"""

import copy
import math
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import numpy as np
import onnx_ir as ir
import torch
from evidence import Row, run
from low_bit_errors import (
    CHECKPOINTS,
    MODELS,
    Implementation,
    implementation,
    implementation_rows,
    whole,
)
from torch import Tensor, nn

from intaglio.exporter.sources.calibration_data import read_calibration
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import Traced, trace
from intaglio.models import training
from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.low_bit import low_bit_nodes, parameter_of, weight_of

CHECKPOINT = CHECKPOINTS / "llama.pt"
WORKERS = 2
LENGTH, ROWS, BATCH = 256, 16, 8  # bytes of a row, rows to calibrate with, rows evaluated at once
BYTES = 200_000  # held out at least
PACKAGES = ("json", "email")  # of the standard library: training takes its top-level modules only
GROUPS = {32: "groups of 32", -1: "one group per row"}
SEEDS = (0, 1, 2)
STAGES = {
    "rtn": "rtn:bits=2,group={}",
    "gptq": "gptq:bits=2,group={}",
    "gptq with clip search": "gptq:bits=2,clip=true,group={}",
    "decoupleq, layer stage": "decoupleq:bits=2,blocks=false,group={}",
    "decoupleq, block stage": "decoupleq:bits=2,group={}",
}
LAYER_STAGE = "decoupleq, layer stage"
RATIOS = {"rtn": 4.0, "gptq": 1.5, "gptq with clip search": 1.1}


@dataclass(frozen=True)
class Found:
    """Perplexity, and the mean of the layers' errors, of ways to quantize."""

    perplexity: float
    error: float
    implementations: Sequence[Implementation]


def measure(quick: bool) -> list[Row]:
    """Rows of perplexity and of layer errors; one group and one seed if `quick`."""
    groups, seeds = ([32], SEEDS[:1]) if quick else (list(GROUPS), SEEDS)
    names = MODELS[-1:] if quick else MODELS
    tasks = [(group, seed) for group in groups for seed in seeds]
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        plain = pool.submit(_float)
        found = dict(zip(tasks, pool.map(_quantize, *zip(*tasks, strict=True)), strict=True))
        perplexity, size, count = plain.result()
        models = list(pool.map(whole, names, [64 if quick else 512] * len(names)))
    note = f"{count:,} parameters, {size:,} bytes held out"
    rows = [Row(name="float: perplexity", value=perplexity, unit="per byte", note=note)]
    for group in groups:
        means = {stage: _mean([found[group, seed][stage] for seed in seeds]) for stage in STAGES}
        rows += _rows(GROUPS[group], means, f"mean over {len(seeds)} calibration seeds")
    return [*rows, *(row for found in models for row in found)]


def _mean(found: list[Found]) -> Found:
    return Found(
        perplexity=fmean(each.perplexity for each in found),
        error=fmean(each.error for each in found),
        implementations=[one for each in found for one in each.implementations],
    )


def _rows(group: str, found: dict[str, Found], note: str) -> Iterator[Row]:
    before: str | None = None
    for stage, here in found.items():
        strict = not stage.endswith("block stage")
        limit = None if before is None else found[before].perplexity
        target = None if limit is None else f"{'<' if strict else '<='} {limit:.4f}"
        value = here.perplexity
        holds = None if limit is None else value < limit or (value == limit and not strict)
        yield Row(name=f"{stage}, {group}: perplexity", value=value, unit="per byte",
                  target=target, holds=holds, against=before, note=note)  # fmt: skip
        before = stage
    for stage, least in RATIOS.items():
        value = found[stage].error / found[LAYER_STAGE].error
        text = f"{found[stage].error:.4f} : {found[LAYER_STAGE].error:.4f}"
        yield Row(name=f"{stage} : {LAYER_STAGE}, {group}: layer error", value=value, unit="ratio",
                  target=f">= {least}", holds=value >= least, note=text)  # fmt: skip
    yield from implementation_rows(group, [i for f in found.values() for i in f.implementations])


def _float() -> tuple[float, int, int]:
    """Perplexity of the checkpoint itself, how many bytes are held out, and its parameters."""
    torch.set_num_threads(1)
    module = load_source(CHECKPOINT).module
    count = sum(parameter.numel() for parameter in module.parameters())
    return _perplexity(module), len(_held_out()), count


def _quantize(group: int, seed: int) -> dict[str, Found]:
    """Quantize the checkpoint in every way, calibrated on what `seed` draws."""
    torch.set_num_threads(1)
    source, traced = _traced()
    calibration = read_calibration({"input_ids": _draw(seed)}, source)
    found = {}
    with tempfile.TemporaryDirectory() as work:
        for stage, spec in STAGES.items():
            model = traced.model.clone()
            context = Context(
                max_context=traced.max_context,
                calibration=calibration,
                module=source.module,
                work=Path(work),  # the block stage goes on from the layers of the layer stage
            )
            (record,) = pipeline.run(model, [pipeline.parse(spec.format(group))], context)
            layers = record.result.details["layers"]
            error = fmean(layer["errors"]["held_out"] for layer in layers)
            perplexity = _perplexity(_with_weights(source, model))
            found[stage] = Found(perplexity, error, [implementation(model, calibration)])
    return found


@cache
def _traced() -> tuple[Source, Traced]:
    source = load_source(CHECKPOINT)
    return source, trace(source)


def _draw(seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    text = training.training_text()
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - LENGTH, (ROWS,), generator=generator).tolist()
    return np.stack([text[start : start + LENGTH].numpy() for start in starts]).astype(np.int64)


def _with_weights(source: Source, model: ir.Model) -> nn.Module:
    """The source's module with what the graph holds: weights dequantized, norms tuned."""
    weights = {}
    for node in low_bit_nodes(model):
        name, turned = parameter_of(node)
        weight = weight_of(node).dequantize()
        weights[name] = weight.T if turned else weight
    module: nn.Module = copy.deepcopy(source.module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = model.graph.initializers.get(name)
            if name in weights:
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))
            elif value is not None and value.const_value is not None:
                parameter.copy_(torch.from_numpy(np.array(value.const_value.numpy())))
    return module


def _held_out() -> Tensor:
    """At least `BYTES` bytes that training never saw."""
    text = training.held_out_text()
    library = Path(sysconfig.get_path("stdlib"))
    for package in PACKAGES:
        for path in sorted((library / package).glob("*.py")):
            more = torch.frombuffer(bytearray(path.read_bytes() or b"\n"), dtype=torch.uint8)
            text = torch.cat([text, more])
    if len(text) < BYTES:
        raise SystemExit(f"This Python's library has only {len(text)} bytes of held-out text.")
    return text[: BYTES + LENGTH]


@torch.no_grad()
def _perplexity(module: nn.Module) -> float:
    text = _held_out().long()
    count = (len(text) - 1) // LENGTH
    rows = torch.stack([text[i * LENGTH : (i + 1) * LENGTH + 1] for i in range(count)])
    total = 0.0
    for part in torch.split(rows, BATCH):
        logits = module(part[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())
        total += loss.item() * len(part)
    return math.exp(total / count)


if __name__ == "__main__":
    run(__doc__, measure)
