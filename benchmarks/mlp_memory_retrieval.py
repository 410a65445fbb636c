"""MLP Memory: perplexity between that of a language model and that of the search it imitates.

    python benchmarks/mlp_memory_retrieval.py [--text NAME] [--beside FILE] [--quick] [--json]

The language model is the trained checkpoint of Llama's kind over bytes; its corpus are packages of
Python's library that it never saw.  What is told is text of `modules`, held out of its training, or
of `files` of the corpus itself, of which every eighth part is left out of it.  With `--beside`, the
rows of the other text are those of an earlier record.

The search is that of `models/parts/imitated_search.py`, by which the memory of `files` was trained
that `models/checkpoints/` has; that of `modules` learns here.  Weights of the mixture
and temperatures are chosen on one half of what is told, and perplexities are those of the other
half; of the mixture with the memory by its engine.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from evidence import Row, run
from torch import Tensor
from torch.nn import functional as F

from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source
from intaglio.models import mlp_memory
from intaglio.models.parts.imitated_search import (
    PART,
    Imitation,
    corpus,
    kept_and_left_out,
    nearest,
    searched,
    states,
)
from intaglio.models.training import WINDOW, held_out_text
from intaglio.runtime.session import Session

CHECKPOINTS = Path(__file__).parents[1] / "models" / "checkpoints"
KEYS, LEARNT, TOLD = 60_000, 30_000, 8192
SOFT = (2.0, 5.0, 15.0, 50.0)  # temperatures of distances
WEIGHTS = tuple(x / 20 for x in range(1, 16))
MODULES, FILES = "modules", "files"
STEPS = 1500
TEMPERATURES = (0.8, 1.0, 1.25)
CONFIG = mlp_memory.BYTES


def texts(name: str, keys: int, told: int) -> tuple[Tensor, Tensor]:
    """The corpus and what is told: so many bytes that choose, so many, and the one behind."""
    if name == MODULES:
        return corpus()[:keys], held_out_text()[: 2 * told + 1]
    kept, parts = kept_and_left_out(keys)
    others = parts[: 2 * told // PART]  # turn and turn about
    return kept, torch.cat((*others[::2], *others[1::2], others[0][:1]))


def taught(name: str, keys: Tensor, values: Tensor, soft: float, quick: bool) -> mlp_memory.Memory:
    """The trained checkpoint, of the files; a memory that learns the modules' corpus here."""
    if name == FILES:
        held = load_source(CHECKPOINTS / "mlp_memory.pt").module
        assert isinstance(held, mlp_memory.Memory)
        return held
    torch.manual_seed(0)
    memory = mlp_memory.build(CONFIG)
    steps = STEPS // 20 if quick else STEPS
    recipe = Imitation(tap=mlp_memory.last_mlp, steps=steps, soft=soft)
    recipe.imitate(memory, keys[:LEARNT], keys, values)
    return memory.requires_grad_(requires_grad=False)


def perplexity(model: Tensor, other: Tensor, weight: float, values: Tensor) -> float:
    """Of (1 - w) exp(model) + w exp(other), both [N, 256]."""
    both = mlp_memory.mixed(model, other, torch.tensor(weight))
    return float(F.nll_loss(both, values).exp())


def measure(name: str, quick: bool) -> list[Row]:
    """Perplexities of the language model, with the search, and with the memory."""
    torch.set_num_threads(1)
    model = load_source(CHECKPOINTS / "llama.pt").module
    tap = mlp_memory.last_mlp(model)
    most = KEYS // 10 if quick else KEYS
    read, text = texts(name, most, TOLD // 8 if quick else TOLD)
    keys, _, values = states(model, tap, read)
    hidden, plain, wanted = states(model, tap, text)
    choose, tell = slice(0, len(hidden) // 2), slice(len(hidden) // 2, None)
    distances, places = nearest(hidden, keys, drop=False)
    soft, weight = min(
        ((s, w) for s in SOFT for w in WEIGHTS),
        key=lambda pair: perplexity(
            plain[choose], _log(searched(distances, values[places], pair[0]))[choose], pair[1],
            wanted[choose],
        ),
    )  # fmt: skip
    found = _log(searched(distances, values[places], soft))
    search = perplexity(plain[tell], found[tell], weight, wanted[tell])
    memory = taught(name, keys, values, soft, quick)
    with torch.no_grad():
        logits = memory(hidden[None])[0]
    heat, share = min(
        ((t, w) for t in TEMPERATURES for w in WEIGHTS),
        key=lambda pair: perplexity(
            plain[choose], (logits[choose] / pair[0]).log_softmax(-1), pair[1], wanted[choose]
        ),
    )
    mixture = mlp_memory.join({"language_model": model, "memory": memory})
    engine = by_engine(mixture, text[(len(text) - 1) // 2 :], share, heat)
    base = perplexity(plain[tell], plain[tell], 0.0, wanted[tell])
    alone = float(F.cross_entropy(logits[tell], wanted[tell]).exp())
    said = "per byte; the paper: 10.42 of GPT2-large, 9.58 with a memory, of WikiText-103"
    return [
        Row(name=f"{name}: language model", value=base, unit="perplexity", note=said),
        Row(name=f"{name}: with exact search among {len(keys):,} keys", value=search,
            unit="perplexity", note=f"weight {weight}, temperature {soft}"),
        Row(name=f"{name}: with the memory, by the engine", value=engine, unit="perplexity",
            target="between both", holds=search < engine < base,
            note=f"weight {share}, temperature {heat}"),
        Row(name=f"{name}: what the search gains, that the memory gains",
            value=(base - engine) / (base - search), unit="share"),
        Row(name=f"{name}: memory alone", value=alone, unit="perplexity"),
    ]  # fmt: skip


def by_engine(mixture: mlp_memory.Mixture, text: Tensor, share: float, heat: float) -> float:
    """Perplexity of text by the exported mixture, in windows as above."""
    count = (len(text) - 1) // WINDOW
    rows = np.stack([text[i * WINDOW : (i + 1) * WINDOW + 1].numpy() for i in range(count)])
    given = {"input_ids": torch.randint(256, (2, 9)), **_conditions(2, share, heat)}
    axes = {"input_ids": "batchxtime", "weight": "batch", "temperature": "batch"}
    lost = []
    with tempfile.TemporaryDirectory() as name:
        export(mixture, Path(name) / "b", inputs=given, axes=axes, steps=32)
        for part in np.split(rows, range(16, count, 16)):
            session = Session.load(Path(name) / "b")
            told = {n: x.numpy() for n, x in _conditions(len(part), share, heat).items()}
            session.condition(told)
            (found,) = session.step({"input_ids": part[:, :-1].astype(np.int64)}).values()
            lost.append(-np.take_along_axis(found, part[:, 1:, None].astype(np.int64), 2))
    return float(np.exp(np.concatenate(lost).mean()))


def _conditions(rows: int, share: float, heat: float) -> dict[str, Tensor]:
    return {"weight": torch.full((rows,), share), "temperature": torch.full((rows,), heat)}


def _log(distribution: Tensor) -> Tensor:
    return distribution.clamp_min(1e-12).log()


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--text", choices=(MODULES, FILES))
    parser.add_argument("--beside", type=Path)
    options, sys.argv[1:] = parser.parse_known_args()
    names = [MODULES, FILES] if options.text is None else [options.text]
    earlier = [] if options.beside is None else json.loads(options.beside.read_text())["rows"]
    kept = [Row(**row) for row in earlier if row["name"].partition(":")[0] not in names]
    chosen = ["--text", options.text] * (options.text is not None)
    chosen += ["--beside", str(options.beside)] * (options.beside is not None)
    run(__doc__, lambda quick: kept + [row for n in names for row in measure(n, quick)], chosen)


if __name__ == "__main__":
    main()
