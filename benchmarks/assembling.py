"""Deep model assembling in small: stages that were trained apart, put in a row, and trained on.

A ViT of three stages of two blocks tells eight shapes.  Stages are trained around one meta model,
and, against them, taken from three models that were trained from other seeds as a whole.
"""

import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from evidence import Row, paired, ratio, run
from torch import nn

from intaglio.exporter.assemble import assemble
from intaglio.exporter.export import export
from intaglio.models.assembling import HYBRIDS, META, TINY, Config, Incubation, build
from intaglio.models.model import save
from intaglio.models.parts.drawn_shapes import accuracy
from intaglio.runtime import Chain, Session

NAME = "assembling"
GRAPHS = ["stage0", "stage1", "stage2"]
SAME = 1e-5  # of chained stages and the whole, relative


def trained(path: Path, config: Config, steps: int, seed: int, start: Path | None = None) -> float:
    """Train a model into a file; its held-out accuracy."""
    torch.manual_seed(seed)
    module = build(config)
    Incubation(steps=steps, seed=seed).train(module, None, start)
    save(path, NAME, asdict(config), module)
    return accuracy(module, TINY.image_size)


def reached(path: Path) -> float:
    """Held-out accuracy of a checkpoint."""
    return accuracy(restored(path), TINY.image_size)


def restored(path: Path) -> nn.Module:
    """The module of a checkpoint."""
    held = torch.load(path, weights_only=True)
    module = build(Config(**held["config"])).eval()
    module.load_state_dict(held["state_dict"])
    return module


def measure(quick: bool) -> list[Row]:
    """All rows."""
    torch.set_num_threads(1)
    steps = 40 if quick else 200
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = _accuracies(folder, steps)
        linked, apart = found["linked"], found["apart"]
        notes = f"{steps} steps each, seeds: 1; chance is 0.125"
        rows = [
            Row(name="meta model", value=found["meta"], unit="accuracy", note=notes),
            Row(name="hybrids, one large stage each", value=found["hybrids"], unit="accuracy"),
            Row(name="assembled, not trained on", value=linked, unit="accuracy",
                target="> stages of models trained apart", holds=linked > apart,
                note=f"{apart:.3f} for these"),
            Row(name="assembled, trained on", value=found["linked, tuned"], unit="accuracy",
                note=f"{found['apart, tuned']:.3f} for stages of models trained apart, after the "
                f"same {steps // 4} steps"),
            Row(name="the large model trained as a whole", value=found["whole"], unit="accuracy",
                note=f"{steps} steps of all stages"),
        ]  # fmt: skip
        return [*rows, *_engines(folder, quick)]


def _accuracies(folder: Path, steps: int) -> dict[str, float]:
    """Of all models; the assembled ones are left in the folder."""
    meta, parts, wholes = folder / "meta.pt", [], []
    found = {"meta": trained(meta, META, steps, 0)}
    hybrids, alone = [], []
    for place, config in enumerate(HYBRIDS.values(), 1):
        parts.append(folder / f"hybrid{place}.pt")
        hybrids.append(trained(parts[-1], config, steps, place, meta))
        wholes.append(folder / f"whole{place}.pt")
        alone.append(trained(wholes[-1], TINY, steps, 3 + place))
    found |= {"hybrids": statistics.mean(hybrids), "whole": statistics.mean(alone)}
    for name, files in (("linked", parts), ("apart", wholes)):
        out = folder / f"{name}.pt"
        assemble(files, out, config={"separate": True}, force=True)
        found[name] = reached(out)
        tuned = folder / f"{name}_tuned.pt"
        found[f"{name}, tuned"] = trained(tuned, TINY, steps // 4, 7, out)
    return found


def _engines(folder: Path, quick: bool) -> list[Row]:
    """The chain of stages against the whole: the same, and how long either takes."""
    export(folder / "linked.pt", folder / "bundle")
    whole, chain = (
        Session.load(folder / "bundle", threads=1),
        Chain.load(folder / "bundle", GRAPHS, threads=1),
    )
    image = {"image": np.random.default_rng(0).normal(size=(8, 3, 24, 24)).astype(np.float32)}
    (one,), (other,) = whole.step(image).values(), chain.step(image).values()
    error = float(np.abs(one - other).max() / np.abs(one).max())
    begun = time.perf_counter()
    times = paired(lambda: chain.step(image), lambda: whole.step(image), 10 if quick else 200)
    return [
        Row(name="chained stages and the whole", value=error, unit="of the largest logit",
            target=f"<= {SAME:g}", holds=error <= SAME),
        Row(name="time of the chain : of the whole", value=ratio(*times), unit="x",
            note=f"8 pictures a call, {time.perf_counter() - begun:.1f} s of pairs"),
    ]  # fmt: skip


if __name__ == "__main__":
    run(__doc__, measure)
