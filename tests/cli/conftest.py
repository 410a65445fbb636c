"""A small language model with random weights, and its bundle."""

from pathlib import Path

import pytest
import torch

import intaglio
from intaglio import models
from intaglio.models import llama

STEPS = 70  # across the chunks and windows that verify compares at


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = llama.Config(hidden_size=16, intermediate_size=24, num_layers=1)
    path = tmp_path_factory.mktemp("checkpoint") / "small.pt"
    models.save(path, "llama", config, models.find("llama").build(config))
    return path


@pytest.fixture(scope="package")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "bundle"
    intaglio.export(checkpoint, path, steps=STEPS)
    return path
