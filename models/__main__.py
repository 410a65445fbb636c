"""Train a tiny checkpoint: ``python -P -m intaglio.models NAME [--preset P] --out FILE``.

``--from FILE`` names the checkpoint of another model, where the recipe begins from one.
"""

import argparse
import time
from pathlib import Path

import torch

from intaglio.spelling import perhaps

from . import MODELS, find, save
from .training import place, timed_report


def main() -> None:
    """Train, save, say what was reached."""
    parser = argparse.ArgumentParser(prog="intaglio.models", description=__doc__)
    trained = {model.name: model.recipe for model in MODELS if model.recipe is not None}
    parser.add_argument("model", metavar="NAME")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--from", dest="start", type=Path)
    parser.add_argument("--out", required=True, type=place)
    options = parser.parse_args()
    if options.model not in trained:
        near = perhaps(options.model, trained)
        parser.error(f"no model {options.model!r}{near}; there are: {', '.join(trained)}")
    model, recipe = find(options.model), trained[options.model]
    if options.preset not in model.presets:
        near = perhaps(options.preset, model.presets)
        parser.error(f"no preset {options.preset!r}{near}; there are: {', '.join(model.presets)}")
    config = model.presets[options.preset]
    recipe = model.recipes.get(options.preset, recipe)
    if options.start is not None and model.adopt is not None:
        config = model.adopt(config, options.start)
    torch.manual_seed(recipe.seed)
    module = model.build(config)
    count = sum(parameter.numel() for parameter in module.parameters())
    print(f"{model.name} {options.preset}: {count} parameters", flush=True)  # noqa: T201
    reached = recipe.train(module, timed_report(time.monotonic()), options.start)
    save(options.out, model.name, config, module)
    print(f"{reached}; {options.out} written")  # noqa: T201


if __name__ == "__main__":
    main()
