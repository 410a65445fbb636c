"""Losses on the user's data, and statistics of norms taken anew."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from intaglio.errors import InputError
from intaglio.exporter.merging.losses import has_statistics, loss, read_data, recalibrate
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.models import llama

X = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def source() -> Source:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    return load_source(module, inputs=[torch.randn(5, 4)])


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path / "data.npz", **arrays)
    return path / "data.npz"


def test_classes_have_cross_entropy_and_accuracy(source: Source, tmp_path: Path) -> None:
    """Over batches of unequal size as over all rows at once."""
    labels = np.random.default_rng(1).integers(0, 3, 300)
    name = next(iter(source.dynamic))
    found, accuracy = loss(
        source.module, read_data(write(tmp_path, labels=labels, **{name: X}), source)
    )
    with torch.no_grad():
        logits = source.module(torch.from_numpy(X))
    wanted = torch.from_numpy(labels)
    assert found == pytest.approx(float(F.cross_entropy(logits, wanted)), rel=1e-5)
    assert accuracy == pytest.approx(float((logits.argmax(1) == wanted).double().mean()))


def test_numbers_have_a_mean_square(source: Source, tmp_path: Path) -> None:
    name = next(iter(source.dynamic))
    labels = np.ones((300, 3), np.float32)
    found = loss(source.module, read_data(write(tmp_path, labels=labels, **{name: X}), source))
    with torch.no_grad():
        square = (source.module(torch.from_numpy(X)) - 1).square().mean()
    assert found[0] == pytest.approx(float(square), rel=1e-5)
    assert found[1] is None


def test_statistics_are_those_of_the_data(source: Source, tmp_path: Path) -> None:
    name = next(iter(source.dynamic))
    data = read_data(write(tmp_path, labels=np.zeros(256, np.int64), **{name: X[:256]}), source)
    assert has_statistics(source.module)
    recalibrate(source.module, data)
    first, norm = source.module[0], source.module[1]  # type: ignore[index]
    with torch.no_grad():
        values = first(torch.from_numpy(X[:256]))
    torch.testing.assert_close(norm.running_mean, values.mean(0))
    parts = torch.stack([part.var(0) for part in values.split(128)]).mean(0)
    torch.testing.assert_close(norm.running_var, parts)
    assert (norm.training, norm.momentum) == (False, 0.1)


def test_tokens_are_held_to_the_tokens_that_follow(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = llama.build(llama.Config(vocab_size=256, hidden_size=8, num_layers=1)).eval()
    source = load_source(module, inputs={"input_ids": torch.randint(256, (2, 7))})
    ids = np.random.default_rng(0).integers(0, 256, (4, 9))
    found, _ = loss(source.module, read_data(write(tmp_path, input_ids=ids), source))
    rows = torch.from_numpy(ids)
    with torch.no_grad():
        logits = module(rows[:, :-1])
    wanted = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    assert found == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"input": X}, "no array 'labels'"),
        ({"input": X, "labels": np.zeros(7, np.int64)}, "other numbers of rows"),
        ({"other": X, "labels": np.zeros(300, np.int64)}, "the model takes"),
    ],
)
def test_data_that_does_not_fit(
    source: Source, tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        read_data(write(tmp_path, **arrays), source)


def test_labels_that_do_not_fit(source: Source, tmp_path: Path) -> None:
    name = next(iter(source.dynamic))
    data = read_data(write(tmp_path, labels=np.zeros((300, 2), np.float32), **{name: X}), source)
    with pytest.raises(InputError, match="the first output is"):
        loss(source.module, data)
