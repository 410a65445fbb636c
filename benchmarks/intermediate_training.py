"""PELA: what lower ranks cost a trained language model, and what its training brings back.

    python benchmarks/intermediate_training.py [--quick] [--json]

From models/checkpoints/llama.pt, whose layers lose half of their entries to singular values of the
weights: held-out loss in nats per byte as they are, after plain training on the task alone, and
after as many steps of the recipe, with and without the term of moved weights; means over seeds,
which draw what is trained on.
"""

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from evidence import Row, run

from intaglio.models.llama import LLAMA
from intaglio.models.parts.pretrained_llama import read
from intaglio.models.pela import Pela
from intaglio.models.training import training_text, validate
from intaglio.models.tuning import of_text

START = Path(__file__).parents[1] / "models" / "checkpoints" / "llama.pt"
STEPS = 150
SEEDS = (0, 1, 2)
UNIT = "nats per byte"


def measure(quick: bool) -> list[Row]:
    """One seed of a few steps if `quick`."""
    torch.set_num_threads(1)
    seeds = SEEDS[:1] if quick else SEEDS
    recipe = Pela(steps=10 if quick else STEPS)
    plain = replace(recipe, features=0.0, perturbation=0.0)
    start = validate(_module())
    before = _loss(replace(recipe, steps=0))
    found = {
        "after plain training": [_loss(replace(plain, seed=seed)) for seed in seeds],
        "after the recipe": [_loss(replace(recipe, seed=seed)) for seed in seeds],
        "after the recipe without the term of moved weights": [
            _loss(replace(recipe, perturbation=0.0, seed=seed)) for seed in seeds
        ],
    }
    means = {name: fmean(each) for name, each in found.items()}
    note = f"{recipe.steps} steps, mean of {len(seeds)} seeds"
    tuned, alone = means["after the recipe"], means["after plain training"]
    rows = [
        Row(name="dense, held-out loss", value=start, unit=UNIT),
        Row(name="singular values of half the entries, not trained", value=before, unit=UNIT),
        *(Row(name=name, value=value, unit=UNIT, note=note) for name, value in means.items()),
    ]
    for name, other in (("not trained", before), ("plain training", alone)):
        share = (other - tuned) / (other - start)
        rows.append(
            Row(
                name=f"part of the loss, of {name}, that the recipe brings back",
                value=share,
                unit="",
                target="> 0",
                holds=share > 0,
            )
        )
    worst = min(
        a - b for a, b in zip(found["after plain training"], found["after the recipe"], strict=True)
    )
    return [
        *rows,
        Row(
            name="least gain over plain training of a seed",
            value=worst,
            unit=UNIT,
            target="> 0",
            holds=worst > 0,
        ),
    ]


def _module() -> Any:
    start = read(START)
    module = LLAMA.build(LLAMA.configure(start.config)).eval()
    module.load_state_dict(dict(start.tensors))
    return module


def _loss(recipe: Pela) -> float:
    module = _module()
    recipe.tune(module, of_text(bytes(training_text().numpy()), 8, 128))
    return validate(module)


if __name__ == "__main__":
    run(__doc__, measure)
