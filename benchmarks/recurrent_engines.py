"""Recurrent systems of `models/`: engines of TensorRT-RTX, without a GPU.

    python benchmarks/recurrent_engines.py [--quick] [--only NAME,...] [--json]

Of every preset, with the weights of `models/checkpoints/` or random ones, and of the variants that
`recurrent_family.py` steps: the largest error of its bundle against PyTorch in float64, the graphs
of it that TensorRT-RTX builds engines of, or why it refuses, and the error of these on an emulated
GPU, as `other_systems.py` has them of the others.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from evidence import Row, run
from other_systems import targets_of
from recurrent_family import NAMES, checkpoints, variants

from intaglio.exporter.options.served_shapes import ServedShapes

SERVED = {  # sizes of pictures, of which an engine has no default
    "mmmamba": "pixel_values:1x1x3x16x16:1x1x3x16x16:2x2x3x16x16",
    "nalaformer": "image:1x3x32x32:1x3x32x32:2x3x64x64",
}


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default="")
    options, sys.argv[1:] = parser.parse_known_args()
    only = set(filter(None, options.only.split(",")))
    if unknown := only - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    run(__doc__, lambda quick: measure(quick, only), ["--only", options.only] * bool(only))


def measure(quick: bool, only: set[str]) -> list[Row]:
    """The rows of each system."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        wanted, place = only or NAMES[: 1 if quick else None], Path(folder)
        systems = [*checkpoints(place, wanted), *(() if quick else variants(place, wanted))]
        for name, checkpoint in systems:
            print(name, file=sys.stderr, flush=True)
            served = SERVED.get(name.split()[0])
            how = {} if served is None else {"shapes": ServedShapes.parse(shapes=[served])}
            rows += targets_of(name, checkpoint, place / name.replace(" ", "-"), **how)
    return rows


if __name__ == "__main__":
    main()
