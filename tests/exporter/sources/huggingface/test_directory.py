"""Directories: what lies in them is found, and what is missing or damaged is named."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from intaglio.errors import SourceError
from intaglio.exporter.sources.huggingface.directory import is_directory, read_directory

WEIGHTS = "model.safetensors"
NORM = "model.norm.weight"


def shard(path: Path) -> None:
    """Cut the weights into two files with an index."""
    tensors = load_file(path / WEIGHTS)
    places: dict[str, str] = {}
    for number in (0, 1):
        name = f"model-0000{number}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[number::2]}
        save_file(part, path / name)
        places |= dict.fromkeys(part, name)
    (path / WEIGHTS).unlink()
    (path / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))


def test_shards_hold_what_one_file_holds(directory: Path) -> None:
    whole = read_directory(directory).tensors()
    shard(directory)
    parts = read_directory(directory).tensors()

    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_pickled_weights_are_read_and_code_in_them_is_not_run(directory: Path) -> None:
    """pytorch_model.bin holds the same tensors; an object in it is refused unopened."""
    tensors = read_directory(directory).tensors()
    (directory / WEIGHTS).unlink()
    torch.save(tensors, directory / "pytorch_model.bin")

    assert read_directory(directory).format == "huggingface/bin"
    assert read_directory(directory).tensors().keys() == tensors.keys()

    torch.save({"x": Path.unlink}, directory / "pytorch_model.bin")
    with pytest.raises(SourceError, match="pickled objects"):
        read_directory(directory).tensors()


def test_the_hash_is_that_of_the_lines_of_sha256sum(directory: Path) -> None:
    lines = "".join(
        f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("config.json", WEIGHTS)
    )

    assert read_directory(directory).sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_other_folders_are_no_sources_of_this_kind(tmp_path: Path) -> None:
    assert not is_directory(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert is_directory(tmp_path)
    assert not is_directory(tmp_path / "config.json")


def no_config(path: Path) -> None:
    (path / "config.json").unlink()


def broken_config(path: Path) -> None:
    (path / "config.json").write_text("{")


def no_table(path: Path) -> None:
    (path / "config.json").write_text("[]")


def no_weights(path: Path) -> None:
    (path / WEIGHTS).unlink()


def other_weights(path: Path) -> None:
    (path / WEIGHTS).rename(path / "consolidated.safetensors")


def missing_shard(path: Path) -> None:
    shard(path)
    (path / "model-00001.safetensors").unlink()


def index_leads_out(path: Path) -> None:
    shard(path)
    places = {"weight_map": {NORM: "../model.safetensors"}}
    (path / f"{WEIGHTS}.index.json").write_text(json.dumps(places))


def empty_index(path: Path) -> None:
    shard(path)
    (path / f"{WEIGHTS}.index.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_config, r"has no config\.json, which says what its weights are of"),
        (broken_config, r"config\.json is not valid JSON"),
        (no_table, "no table of keys and values"),
        (no_weights, "no weights are there at all"),
        (other_weights, r"it has consolidated\.safetensors"),
        (missing_shard, r"lacks 1 of the 2 files that .* names: model-00001\.safetensors"),
        (index_leads_out, r"'\.\./model\.safetensors', which is no file beside it"),
        (empty_index, "has no weight_map"),
    ],
)
def test_an_incomplete_directory_is_told(directory: Path, damage: object, message: str) -> None:
    assert callable(damage)
    damage(directory)

    with pytest.raises(SourceError, match=message):
        read_directory(directory)


def test_a_truncated_file_is_told_wherever_it_ends(directory: Path) -> None:
    data = (directory / WEIGHTS).read_bytes()
    for size in (0, 4, 100, len(data) // 2, len(data) - 1):
        (directory / WEIGHTS).write_bytes(data[:size])
        with pytest.raises(SourceError, match="not a whole safetensors file"):
            read_directory(directory).tensors()


def test_a_tensor_in_two_shards_is_refused(directory: Path) -> None:
    shard(directory)
    first, second = (directory / f"model-0000{number}.safetensors" for number in (0, 1))
    save_file({**load_file(first), **load_file(second)}, second)

    with pytest.raises(SourceError, match="in two of its weight files"):
        read_directory(directory).tensors()
