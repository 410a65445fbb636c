"""Files that people have: read where they hold weights, refused by name where they do not."""

import argparse
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.checkpoint import read_checkpoint
from intaglio.models import FORMAT


def weights() -> dict[str, Tensor]:
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


def assert_weights(found: Any) -> None:
    assert found.keys() == weights().keys()
    assert all(torch.equal(found[name], value) for name, value in weights().items())


def test_a_checkpoint_of_ours_names_model_and_config(tmp_path: Path) -> None:
    """Nothing has to be said beside the file."""
    path = tmp_path / "model.pt"
    config = {"width": 3}
    torch.save(
        {"format": FORMAT, "model": "llama", "config": config, "state_dict": weights()}, path
    )

    checkpoint = read_checkpoint(path)

    assert (checkpoint.format, checkpoint.model, checkpoint.config) == (FORMAT, "llama", config)
    assert_weights(checkpoint.tensors)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    """A file of a later version says so instead of failing on its contents."""
    path = tmp_path / "model.pt"
    torch.save({"format": "intaglio.checkpoint/9", "state_dict": weights()}, path)

    with pytest.raises(SourceError, match=r"intaglio\.checkpoint/9.*reads 'intaglio.checkpoint/1'"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: state,
        lambda state: {"state_dict": state},
        lambda state: {"model": state, "optimizer": {"state": {0: torch.ones(1)}}, "step": 3},
        lambda state: {"module": state, "loss": torch.tensor(0.5)},
        lambda state: {"ema": state},
        lambda state: {"model": {"state_dict": state}, "epoch": 1},
        lambda state: {"ema": {"module": state, "decay": torch.tensor(0.9)}},
    ],
)
def test_the_state_dict_is_found_where_people_put_it(
    tmp_path: Path, nest: Callable[[Any], Any]
) -> None:
    """At the top or under the usual keys, nested twice, with other things beside it."""
    path = tmp_path / "model.pt"
    torch.save(nest(weights()), path)

    checkpoint = read_checkpoint(path)

    assert_weights(checkpoint.tensors)
    assert checkpoint.notes == ()


def test_model_goes_before_ema_and_the_choice_is_told(tmp_path: Path) -> None:
    """Of two state dicts the first in the documented order is taken; --key takes the other."""
    path = tmp_path / "model.pt"
    averaged = {name: 2 * value for name, value in weights().items()}
    torch.save({"ema": averaged, "model": weights()}, path)

    first = read_checkpoint(path)
    second = read_checkpoint(path, key="ema")

    assert_weights(first.tensors)
    assert first.notes == ("model.pt: weights taken from 'model', not from 'ema'.",)
    assert second.tensors["bias"].tolist() == [2.0, 2.0]


def test_weights_under_another_key_are_pointed_at(tmp_path: Path) -> None:
    """The message lists the keys that would do, and --key takes a dotted one."""
    path = tmp_path / "model.pt"
    torch.save({"generator": weights(), "nets": {"a": weights()}}, path)

    with pytest.raises(SourceError, match=r"'generator': choose with --key"):
        read_checkpoint(path)
    with pytest.raises(SourceError, match=r"nothing under --key 'nets.b': 'b' is not in a"):
        read_checkpoint(path, key="nets.b")
    assert_weights(read_checkpoint(path, key="nets.a").tensors)


def test_safetensors_and_the_old_container_are_read_whatever_they_are_called(
    tmp_path: Path,
) -> None:
    """The first bytes decide."""
    safetensors.torch.save_file(weights(), tmp_path / "pytorch_model.bin")
    torch.save(weights(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)

    assert read_checkpoint(tmp_path / "pytorch_model.bin").format == "safetensors"
    assert_weights(read_checkpoint(tmp_path / "pytorch_model.bin").tensors)
    assert_weights(read_checkpoint(tmp_path / "old.pth").tensors)


def test_plain_data_beside_the_weights_does_no_harm(tmp_path: Path) -> None:
    """NumPy scalars, arguments and paths are in many training checkpoints."""
    path = tmp_path / "model.pt"
    data = {
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(0.5),
        "step": np.int64(3),
        "log": pathlib.PurePosixPath("log"),
    }
    torch.save({"model": weights(), **data}, path)

    assert_weights(read_checkpoint(path).tensors)


class Planted:
    """A pickle of this creates a folder when it is loaded without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
def test_a_pickle_that_would_run_code_does_not_run(tmp_path: Path, container: str) -> None:
    """It is refused with what it risks and the way out, and the planted folder is not created."""
    path, target = tmp_path / "model.pt", tmp_path / "planted"
    content = {"model": weights(), "extra": Planted(target)}
    if container == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")

    with pytest.raises(SourceError, match=r"any\s+code .*state_dict\(\).*--model"):
        read_checkpoint(path)
    assert not target.exists()

    # The plant is live: a careless reader runs it.
    if container == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert target.exists()


def test_a_pickled_module_is_refused_by_the_names_of_its_classes(tmp_path: Path) -> None:
    """torch.save(model) stores code by reference; only its state dict is data."""
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2), path)

    with pytest.raises(SourceError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(60), "is truncated"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9", "is truncated or damaged"),
        (b"GGUF" + bytes(60), "is a GGUF file of llama.cpp"),
        (b"hello world", "neither a file of torch.save nor safetensors"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00" + b'{"a":', "not a whole safetensors file"),
    ],
)
def test_a_broken_or_foreign_file_is_one_clear_error(
    tmp_path: Path, content: bytes, message: str
) -> None:
    """Each kind has its own sentence, and the file's name is in it."""
    path = tmp_path / "model.pt"
    path.write_bytes(content)

    with pytest.raises(SourceError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_cut_anywhere_is_an_error_of_ours(tmp_path: Path, legacy: bool) -> None:
    """No exception of PyTorch's reader gets through."""
    whole, path = tmp_path / "whole.pt", tmp_path / "cut.pt"
    torch.save(weights(), whole, _use_new_zipfile_serialization=not legacy)
    data = whole.read_bytes()

    for size in range(0, len(data), 1 + len(data) // 50):
        path.write_bytes(data[:size])
        with pytest.raises(SourceError):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "there is no such file"),
        (("manifest.json",), "a bundle, which is exported already"),
        (("notes.txt",), "is a directory"),
    ],
)
def test_what_is_no_file_is_refused_by_kind(
    tmp_path: Path, files: tuple[str, ...], message: str
) -> None:
    """A missing path and each kind of directory has its own advice."""
    path = tmp_path / "source"
    for name in files:
        path.mkdir(exist_ok=True)
        (path / name).write_text("{}")

    with pytest.raises(SourceError, match=message):
        read_checkpoint(path)


def test_archives_without_weights_are_refused_by_kind(tmp_path: Path) -> None:
    """TorchScript, as PyTorch itself writes it, and others, whatever they are called."""
    script = (
        "import sys, torch; m = torch.nn.Linear(2, 2); "
        "torch.jit.save(torch.jit.trace(m, torch.ones(1, 2)), sys.argv[1])"
    )
    subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", script, tmp_path / "ts.pt"], check=True
    )
    with zipfile.ZipFile(tmp_path / "array.npz", "w") as archive:
        archive.writestr("array.npy", "x")

    with pytest.raises(SourceError, match=r"TorchScript archive.*state_dict\(\).*--model"):
        read_checkpoint(tmp_path / "ts.pt")
    with pytest.raises(SourceError, match=r"is an \.npz file: arrays by name \(array\)"):
        read_checkpoint(tmp_path / "array.npz")


def test_pickled_objects_are_loaded_where_that_was_allowed(tmp_path: Path) -> None:
    """Beside the weights, or a whole module of PyTorch's own."""
    torch.save({"model": weights(), "extra": {1, 2}, "where": Version()}, tmp_path / "state.pt")
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "module.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(nn.Linear(2, 2)))

    assert_weights(read_checkpoint(tmp_path / "state.pt", allow_pickle=True).tensors)
    for name in ("module.pt", "plain.pkl"):
        found = read_checkpoint(tmp_path / name, allow_pickle=True)
        assert isinstance(found.module, nn.Linear)


class Version:
    """An object of a class that is not data."""


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    """A lone tensor and a dict of numbers are told apart from a state dict."""
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    torch.save({"epoch": 1, "step": 2}, tmp_path / "numbers.pt")

    with pytest.raises(SourceError, match="a single tensor"):
        read_checkpoint(tmp_path / "tensor.pt")
    with pytest.raises(SourceError, match="it has epoch, step"):
        read_checkpoint(tmp_path / "numbers.pt")
