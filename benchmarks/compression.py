"""What fewer channels and lower ranks cost a trained language model, and what they save.

    python benchmarks/compression.py [--quick] [--json]

The trained Llama checkpoint loses 20, 30 and 50 % of the parameters of its layers: by MoDeGPT, by
the sizes of weights, by low rank of the weights alone (SVD) and by that of the outputs, calibrated
on rows of its training text that a seed draws; figures are means over the seeds.  Perplexity per
byte is over text that it was not trained on; what matters is the excess over the dense model's.
Tokens per second are those of sessions on ONNX Runtime, one token at a time, of a decoder of over
100M parameters with random weights, dense and at 30 %, measured in turns.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from evidence import Row, paired, ratio, run
from low_bit_accuracy import BATCH, CHECKPOINT, LENGTH, _draw, _held_out
from torch.nn import functional as F

import intaglio
from intaglio.exporter.sources.calibration_data import read_calibration
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import Traced, trace
from intaglio.models.llama import Config, build
from intaglio.passes import evaluate, pipeline
from intaglio.passes.base import Context
from intaglio.passes.pipeline import parse
from intaglio.runtime import Session

SEEDS = (0, 1, 2)
RATIOS = (0.2, 0.3, 0.5)
WAYS = {
    "MoDeGPT": "modegpt:ratio={}",
    "magnitude": "modegpt:ratio={},by='magnitude'",
    "SVD": "low-rank:ratio={},by='svd'",
    "low rank by outputs": "low-rank:ratio={}",
}
FEWER = 3.0  # times less excess than by magnitude, and by SVD, at 30 %
LARGE = Config(
    vocab_size=4096,
    hidden_size=1024,
    intermediate_size=2816,
    num_layers=8,
    num_heads=16,
    num_kv_heads=16,
)
SPEED = 1.35


def measure(quick: bool) -> list[Row]:
    """Rows of perplexity, of ratio 0, and of speed; one seed and one ratio if `quick`."""
    torch.set_num_threads(1)
    seeds, ratios = (SEEDS[:1], RATIOS[1:2]) if quick else (SEEDS, RATIOS)
    dense = perplexity("", 0)[0]
    rows = [Row(name="dense: perplexity", value=dense, unit="per byte")]
    for share in ratios:
        found = {
            way: [perplexity(text.format(share), seed) for seed in seeds]
            for way, text in WAYS.items()
        }
        rows += _rows(share, dense, found, len(seeds))
    return [*rows, *_speed(quick)]


def _rows(
    share: float, dense: float, found: dict[str, list[tuple[float, float]]], seeds: int
) -> Iterator[Row]:
    note = f"mean over {seeds} calibration seeds"
    means = {way: fmean(p for p, _ in each) for way, each in found.items()}
    left = {way: each[0][1] for way, each in found.items()}
    for way, value in means.items():
        kept = f"{left[way]:.3f} of the layers' parameters, {note}"
        yield Row(name=f"{way}, {share:.0%}: perplexity", value=value, unit="per byte", note=kept)
    for way in ("magnitude", "SVD"):
        value = (means[way] - dense) / (means["MoDeGPT"] - dense)
        target = share == RATIOS[1]
        yield Row(
            name=f"excess of {way} : MoDeGPT, {share:.0%}",
            value=value,
            unit="ratio",
            target=f">= {FEWER}" if target else None,
            holds=value >= FEWER if target else None,
        )
    value = (means["SVD"] - dense) / (means["low rank by outputs"] - dense)
    yield Row(
        name=f"excess of SVD : low rank by outputs, {share:.0%}",
        value=value,
        unit="ratio",
        target="> 1",
        holds=value > 1,
    )


@cache
def _traced(checkpoint: Path) -> tuple[Source, Traced]:
    source = load_source(checkpoint)
    traced = trace(source)
    pipeline.run(traced.model, pipeline.tidy(), Context())
    return source, traced


def shrunk(
    spec: str, seed: int, checkpoint: Path = CHECKPOINT
) -> tuple[ir.Model, Mapping[str, Any]]:
    """The graph after a pass, and what the pass told."""
    source, traced = _traced(checkpoint)
    model = traced.model.clone()
    data = read_calibration({"input_ids": _draw(seed)}, source)
    context = Context(calibration=data, module=source.module)
    (record,) = pipeline.run(model, [parse(spec)], context)
    return model, record.result.details


def perplexity(spec: str, seed: int, checkpoint: Path = CHECKPOINT) -> tuple[float, float]:
    """Of the graph after a pass, and the part of the layers' parameters that it leaves."""
    model, left = _traced(checkpoint)[1].model, 1.0
    if spec:
        model, details = shrunk(spec, seed, checkpoint)
        before, after = details["parameters"]
        left = after / before
    text = _held_out().long()
    count = (len(text) - 1) // LENGTH
    held = torch.stack([text[i * LENGTH : (i + 1) * LENGTH + 1] for i in range(count)])
    engine = evaluate.session(model, optimize=True)
    total = 0.0
    for part in torch.split(held, BATCH):
        (logits,) = engine.run(["logits"], {"input_ids": part[:, :-1].numpy()})
        loss = F.cross_entropy(torch.from_numpy(logits).flatten(0, 1), part[:, 1:].flatten())
        total += loss.item() * len(part)
    return math.exp(total / count), left


def _speed(quick: bool) -> Iterator[Row]:
    torch.manual_seed(0)
    module = build(LARGE).eval()
    size = sum(parameter.numel() for parameter in module.parameters())
    ids = np.random.default_rng(0).integers(0, LARGE.vocab_size, (4, 64))
    spec = "modegpt:ratio=0.3,multiple=8,by='magnitude'"  # weights are random, widths count
    inputs = {"input_ids": torch.from_numpy(ids[:1, :8])}
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for name, passes in (("dense", []), ("narrow", [spec])):
            out = Path(folder) / name
            intaglio.export(
                module, out, passes=passes, calib={"input_ids": ids} if passes else None,
                inputs=inputs, verify=False, portable=False,
            )  # fmt: skip
            session = Session.load(out)
            session.step({"input_ids": ids[:1]})
            sessions.append(session)
        token = {"input_ids": ids[:1, :1]}
        dense, narrow = (lambda s=session: s.step(token) for session in sessions)
        times = paired(dense, narrow, 10 if quick else 60)
        value = ratio(*times)
    yield Row(
        name="tokens per second at 30 % : dense",
        value=value,
        unit="ratio",
        target=f">= {SPEED}",
        holds=value >= SPEED,
        note=f"{size:,} parameters, batch 1, after 64 tokens",
    )


if __name__ == "__main__":
    run(__doc__, measure)
