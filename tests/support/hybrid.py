"""A small hybrid of two layers: Gated DeltaNet with convolutions, and attention."""

from pathlib import Path

import torch

from intaglio.models import find, gated_deltanet, save

SM = 80  # what its engine is for
NAME = "gated-deltanet"
CONFIG = gated_deltanet.Config(
    vocab_size=32,
    hidden_size=32,
    intermediate_size=32,
    num_layers=2,
    num_heads=2,
    head_size=16,
    attention_every=2,
)


def build() -> torch.nn.Module:
    """The module, with the same random weights each time."""
    torch.manual_seed(0)
    return find(NAME).build(CONFIG)


def write(path: Path) -> Path:
    """Save it as a checkpoint at `path`."""
    save(path, NAME, CONFIG, build())
    return path
