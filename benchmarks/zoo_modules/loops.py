"""Loops over tokens in Python: those that `benchmarks/loops.py` takes."""

import torch
from loop_modules import MODULES
from torch import Tensor

from .mixer import Mixer, tokens


def named() -> dict[str, Tensor]:
    """Token ids under the name that a language model's forward has."""
    return {"input_ids": torch.zeros(2, 9, dtype=torch.int64)}


ATTENDING = ("mixed_stack",)  # whose keys and values grow with the tokens

MIXERS = tuple(
    Mixer(
        make=make,
        inputs=named if make.__name__ == "language_model" else tokens,
        constant=make.__name__ not in ATTENDING,
    )
    for make in MODULES
)
