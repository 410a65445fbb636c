"""M-VAR: token-steps and time of carried states beside running Mamba anew over all scales.

    python benchmarks/mvar.py [--quick] [--json FILE]

The published code joins the inputs of all scales so far and runs Mamba over them again at each
scale; a step engine carries its state.  Both attend within the scale alone.  The module is small
and has the published scales, with random weights: what is compared is the work, and that the scores
of all scales are the same.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import Row, run
from torch.nn import functional as F

import intaglio
from intaglio.models import find
from intaglio.models.mvar import D16, MVAR, Config, build
from intaglio.runtime import Session

SIDES = D16.sides
ERROR, RATIO = 1e-4, 2.51


def measure(quick: bool) -> list[Row]:
    """Token-steps by the scales, the error of all scales, times of one row in turns."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = 64 if quick else 256
    config = Config(
        depth=2,
        hidden_size=size,
        num_heads=size // 32,
        sides=SIDES,
        codes=256,
        decoder_size=8,
        multipliers=(1, 1),
        groups=4,
    )
    module = build(config).eval()
    ends = np.cumsum([side**2 for side in SIDES])
    carried, joined = int(ends[-1]), int(ends.sum())
    tokens = torch.randn(1, carried, config.channels)
    label = torch.tensor([7])
    with tempfile.TemporaryDirectory() as folder:
        model = find("mvar")
        given = model.inputs(config, 2, 7, torch.Generator().manual_seed(0))
        axes = model.axes(config) if model.axes is not None else None
        path = Path(folder) / "b"
        intaglio.export(module, path, inputs=given, axes=axes, steps=carried, verify=False)
        session = Session.load(path, threads=1)
        with torch.no_grad():
            exact = module.double()(tokens.double(), label)[0].numpy()
        module.float()
        ours, error = [], 0.0
        anew: list[float] = []
        for _ in range(2 if quick else 4):
            session.state.reset()
            session.condition({"label": label.numpy()})
            begin, spent = 0, 0.0
            for end in ends.tolist():
                part = tokens[:, begin:end].numpy()
                start = time.perf_counter()
                (found,) = session.step({"tokens": part}).values()
                spent += time.perf_counter() - start
                off = np.abs(found[0] - exact[begin:end]).max() / np.abs(exact).max()
                error, begin = max(error, float(off)), end
            ours.append(spent)
            seconds, scores = _joined(module, tokens, label, ends.tolist())
            anew.append(seconds)
            error = max(error, float(np.abs(scores - exact).max() / np.abs(exact).max()))
    mixer = _mixers(module, ends.tolist(), quick=quick)
    return [
        Row(name="token-steps of Mamba in a layer, carried", value=carried, unit=""),
        Row(name="token-steps of Mamba in a layer, joined again", value=joined, unit=""),
        Row(
            name="joined again / carried",
            value=joined / carried,
            unit="x",
            target=f"{RATIO} by the scales",
            holds=abs(joined / carried - RATIO) < 0.01,
        ),
        Row(
            name="error of all 680 tokens against float64",
            value=error,
            unit="",
            target=f"at most {ERROR:.0e}",
            holds=error <= ERROR,
        ),
        Row(name="time of Mamba, joined again / carried, PyTorch", value=mixer, unit="x"),
        Row(name="all scales, step engine", value=min(ours) * 1e3, unit="ms"),
        Row(name="all scales, joined again, PyTorch", value=min(anew) * 1e3, unit="ms"),
        Row(name="joined again in PyTorch / step engine", value=min(anew) / min(ours), unit="x"),
    ]


def _joined(
    module: MVAR, tokens: torch.Tensor, label: torch.Tensor, ends: list[int]
) -> tuple[float, Any]:
    """Seconds and scores of generation as published, given the tokens of each scale."""

    def norm(x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    before: list[Any] = [None] * len(module.blocks)
    scores, begin, start = [], 0, time.perf_counter()
    with torch.no_grad():
        condition = module.class_emb(label)
        for scale, end in enumerate(ends):
            x = module.word_embed(tokens[:, begin:end])
            if not scale:
                x = condition[:, None] + module.pos_start
            x = x + module.lvl_embed.weight[scale] + module.pos_1LC[:, begin:end]
            seen = torch.ones(end - begin, end - begin, dtype=torch.bool)
            for at, block in enumerate(module.blocks):
                each: Any = block
                g1, g2, g3, s1, s2, s3, b1, b2, b3 = each.ada_lin(condition)[:, None].chunk(9, -1)
                x = x + g1 * each.attn(norm(x) * (1 + s1) + b1, seen)
                joined = x if before[at] is None else torch.cat([before[at], x], dim=1)
                before[at] = joined
                x = x + g2 * each.mamba(norm(joined) * (1 + s2) + b2)[:, begin:]
                x = x + g3 * each.ffn(norm(x) * (1 + s3) + b3)
            scores.append(module.head(module.head_nm(x, condition))[0])
            begin = end
    return time.perf_counter() - start, torch.cat(scores).numpy()


def _mixers(module: MVAR, ends: list[int], *, quick: bool) -> float:
    """Time of one Mamba layer over all scales so far at each, beside once over each scale."""
    block: Any = module.blocks[0]
    x = torch.randn(1, ends[-1], module.pos_1LC.shape[-1])
    begins = [0, *ends[:-1]]
    ratios = []
    with torch.no_grad():
        for _ in range(2 if quick else 6):
            start = time.perf_counter()
            for end in ends:
                block.mamba(x[:, :end])
            middle = time.perf_counter()
            for begin, end in zip(begins, ends, strict=True):
                block.mamba(x[:, begin:end])
            ratios.append((middle - start) / (time.perf_counter() - middle))
    return float(np.median(ratios))


if __name__ == "__main__":
    run(__doc__, measure)
