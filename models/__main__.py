"""Train a tiny checkpoint: ``python -P -m intaglio.models NAME [--preset P] --out FILE``."""

import argparse
import time

import torch

from . import MODELS, find, save
from .training import timed_report, train


def main() -> None:
    """Train, save, print the held-out loss."""
    parser = argparse.ArgumentParser(prog="intaglio.models", description=__doc__)
    parser.add_argument("model", choices=[model.name for model in MODELS])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    model = find(options.model)
    config = model.presets[options.preset]
    torch.manual_seed(model.recipe.seed)
    module = model.build(config)
    count = sum(parameter.numel() for parameter in module.parameters())
    print(f"{model.name} {options.preset}: {count} parameters", flush=True)  # noqa: T201
    loss = train(module, model.recipe, timed_report(time.monotonic()))
    save(options.out, model.name, config, module)
    print(f"held-out loss {loss:.4f} nats per byte, {options.out} written")  # noqa: T201


if __name__ == "__main__":
    main()
