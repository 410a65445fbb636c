"""What is no source is told by what it is, with the way that leads on."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intaglio.errors import SourceError
from intaglio.exporter.sources.checkpoint import read_checkpoint


def content(kind: str, path: Path) -> Any:
    """A file, or a folder, as another program writes it; as far as it is looked at."""
    heads = {
        "w.gguf": b"GGUF\x03\0\0\0",
        "w.tflite": b"\x1c\0\0\0TFL3" + bytes(8),
        "w.h5": b"\x89HDF\r\n\x1a\n",
        "w.pb": b"\x0a\x05\x0a\x01x",
        "w.model": b"\x0a\x05\x0a\x01x",
        "w.pkl": b"\x80\x04\x95\x20\0\0\0\0\0\0\0\x8c\x0fsklearn.svm._cls\x94.",
    }
    if kind in heads:
        return path.write_bytes(heads[kind])
    if kind == "w.npz":
        return np.savez(path, **{"net.weight": np.zeros(2)})  # type: ignore[arg-type]
    if kind == "w.keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("model.weights.h5", "x")
        return None
    if kind == "script.pt":
        return torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
    path.mkdir()
    name = "saved_model.pb" if kind == "saved" else "model.safetensors"
    return (path / name).write_bytes(b"x")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("w.gguf", "GGUF file of llama.cpp.*Hugging Face directory"),
        ("w.tflite", "TensorFlow Lite.*tf2onnx.convert --tflite w.tflite"),
        ("w.h5", "HDF5.*format='onnx'"),
        ("w.keras", "model of Keras.*format='onnx'"),
        ("w.pb", "graph of TensorFlow.*--graphdef"),
        ("w.model", "model of sentencepiece.*--tokenizer"),
        ("w.pkl", "scikit-learn.*skl2onnx"),
        ("w.npz", r"\.npz file: arrays by name \(net.weight\).*torch.save"),
        ("script.pt", "TorchScript archive"),
        ("saved", "SavedModel.*--saved-model"),
        ("folder", "without config.json.*model.safetensors"),
    ],
)
def test_each_is_told_with_the_way_that_leads_on(kind: str, said: str, tmp_path: Path) -> None:
    content(kind, tmp_path / kind)
    with pytest.raises(SourceError, match=said):
        read_checkpoint(tmp_path / kind)


def test_the_only_weights_of_a_file_are_taken_with_a_note(tmp_path: Path) -> None:
    """Under whatever name; where there are several, one has to be named."""
    state = {"weight": torch.ones(2)}
    torch.save({"net": state, "epoch": 3}, tmp_path / "one.pt")
    torch.save({"net": state, "twin": state}, tmp_path / "two.pt")

    [note] = read_checkpoint(tmp_path / "one.pt").notes
    assert "weights taken from 'net', the only ones" in note
    with pytest.raises(SourceError, match="'net', 'twin': choose with --key"):
        read_checkpoint(tmp_path / "two.pt")
