"""Recurrent systems of `models/`: engines of TensorRT-RTX, without a GPU.

    python benchmarks/recurrent_engines.py [--quick] [--only NAME,...] [--tokens N] [--json]

Of every preset, with the weights of `models/checkpoints/` or random ones, and of the variants that
`recurrent_family.py` steps: the largest error of its bundle against PyTorch in float64, the graphs
of it that TensorRT-RTX builds engines of, or why it refuses, and the error of these on an emulated
GPU, as `other_systems.py` has them of the others.  On that one 8 tokens of each of two rows go
through an engine, or `--tokens`, which the row then notes: some systems take minutes a token.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

import torch
from evidence import Row, run
from other_systems import GPU_STEPS, targets_of
from recurrent_family import NAMES, checkpoints, chosen_of, variants

from intaglio.exporter.options.served_shapes import ServedShapes

SERVED = {  # sizes and numbers of pictures, of which an engine has no default
    "mmmamba": "pixel_values:1x1x3x16x16:1x1x3x16x16:2x16x3x16x16",
    "nalaformer": "image:1x3x32x32:1x3x32x32:2x3x64x64",
}


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default="")
    parser.add_argument("--tokens", type=int, default=GPU_STEPS)
    options, sys.argv[1:] = parser.parse_known_args()
    only = chosen_of(parser, options.only)
    chosen = ["--only", shlex.quote(options.only)] * bool(only)
    if options.tokens != GPU_STEPS:
        chosen += ["--tokens", str(options.tokens)]
    run(__doc__, lambda quick: measure(quick, only, options.tokens), chosen)


def measure(quick: bool, only: set[str], tokens: int) -> list[Row]:
    """The rows of each system."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        wanted, place = only or set(NAMES[: 1 if quick else None]), Path(folder)
        systems = [*checkpoints(place, wanted), *(() if quick else variants(place, wanted))]
        for name, checkpoint in systems:
            print(name, file=sys.stderr, flush=True)
            served = SERVED.get(name.split()[0])
            how = {} if served is None else {"shapes": ServedShapes.parse(shapes=[served])}
            out = place / name.replace(" ", "-")
            rows += targets_of(name, checkpoint, out, tokens, **how)
    return rows


if __name__ == "__main__":
    main()
