"""What `fuzz.py` gives the command line: whole inputs, and one mutation of them for each case."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import safetensors.torch
import torch
from fuzz_graphs import draw_graph, write_graphs
from fuzz_mutations import (
    STRINGS,
    change_graph,
    change_json,
    change_pickle,
    change_safetensors,
    change_zip,
    flip_bytes,
)

import intaglio
from intaglio import models
from intaglio.models import llama

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, vocab=16, width=4):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.head = nn.Linear(width, vocab)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))
"""
CONFIG = llama.Config(hidden_size=16, intermediate_size=24, num_layers=1)
OUT = "out"
GRAPHS = "graphs"
MODULES = "modules"  # where the names of all modules are kept that an export imports
EXPORT = ("-o", OUT, "--no-verify", "--no-portable")

Mutate = Callable[[Path, Random], str]  # changes what lies in a folder; says what it changed


@dataclass(frozen=True)
class Kind:
    """Cases of one kind: copies of `inputs`, changed by `mutate`, given to the command line."""

    name: str
    inputs: tuple[str, ...]
    mutate: Mutate
    arguments: tuple[str, ...]


def write_inputs(folder: Path) -> None:
    """Write whole inputs of every kind; the same each time."""
    torch.manual_seed(0)
    scope: dict[str, type[torch.nn.Module]] = {}
    exec(CODE, scope)
    weights = scope["Net"]().state_dict()
    (folder / "fuzzed_net.py").write_text(CODE)
    torch.save({"model": weights, "step": 1}, folder / "net.pt")
    torch.save(weights, folder / "net.bin", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(weights, folder / "net.safetensors")
    module = models.find("llama").build(CONFIG)
    models.save(folder / "llama.pt", "llama", CONFIG, module)
    torch.save(module.state_dict(), folder / "llama_weights.pt")
    values = torch.load(folder / "llama.pt", weights_only=True)["config"]
    (folder / "config.json").write_text(json.dumps(values))
    intaglio.export(folder / "llama.pt", folder / "bundle", steps=4)
    np.savez(folder / "arrays.npz", input_ids=np.arange(6).reshape(2, 3))
    write_graphs(folder / GRAPHS)
    (folder / MODULES).write_text("\n".join(sys.modules))


def _bytes(name: str, *mutations: Callable[[bytes, Random], tuple[bytes, str]]) -> Mutate:
    """Change one file by one of `mutations`."""

    def mutate(folder: Path, random: Random) -> str:
        content, what = random.choice(mutations)((folder / name).read_bytes(), random)
        (folder / name).write_bytes(content)
        return what

    return mutate


def _config(folder: Path, random: Random) -> str:
    """Change the config in a checkpoint of ours, which names its model."""
    content = torch.load(folder / "llama.pt", weights_only=True)
    changed, what = change_json(json.dumps(content["config"]).encode(), random)
    try:
        content["config"] = json.loads(changed)
    except (ValueError, RecursionError):
        content["model"] = random.choice(STRINGS)
        what = f"model {content['model'][:20]!r}"
    torch.save(content, folder / "llama.pt")
    return what


def _bundle_file(folder: Path, random: Random) -> str:
    """Change, remove or replace a file of a bundle that its manifest describes."""
    bundle = folder / "bundle"
    files = [path for path in sorted(bundle.rglob("*")) if path.is_file()]
    path = random.choice(files)
    what = random.choice(("change", "remove", "link", "folder", "link of the folder"))
    if what == "change":
        path.write_bytes(flip_bytes(path.read_bytes(), random)[0])
    else:
        path.unlink()
    if what == "link":
        path.symlink_to(random.choice(("/etc/passwd", "/dev/zero", path.name, "../llama.pt")))
    elif what == "folder":
        path.mkdir()
    elif what == "link of the folder":
        shutil.rmtree(bundle / "ort")
        (bundle / "ort").symlink_to(random.choice((folder, "/etc", "ort")))
    return f"{what} {path.name}"


def _signed(name: str, change: Callable[[bytes, Random], tuple[bytes, str]]) -> Mutate:
    """Change a file of a bundle, and the manifest so that it holds for the file."""

    def mutate(folder: Path, random: Random) -> str:
        path, manifest = folder / "bundle" / name, folder / "bundle" / "manifest.json"
        content, what = change(path.read_bytes(), random)
        path.write_bytes(content)
        entry = json.loads(manifest.read_text())
        sha256 = hashlib.sha256(content).hexdigest()
        entry["files"][name] = {"bytes": len(content), "sha256": sha256}
        manifest.write_text(json.dumps(entry))
        return what

    return mutate


def _graph(folder: Path, random: Random) -> str:
    """One of ONNX's tests, changed; the folder of them lies beside that of the case."""
    content, what = draw_graph(folder.parent / GRAPHS, random)
    (folder / "model.onnx").write_bytes(content)
    return what


_NET = ("--model", "fuzzed_net:Net", *EXPORT)
_RUN = ("run", "bundle", "--prompt", "ab", "--steps", "3")

KINDS = [
    Kind("zip checkpoint", ("net.pt", "fuzzed_net.py"),
         _bytes("net.pt", change_zip, change_zip, flip_bytes), ("export", "net.pt", *_NET)),
    Kind("legacy checkpoint", ("net.bin", "fuzzed_net.py"),
         _bytes("net.bin", change_pickle, flip_bytes), ("export", "net.bin", *_NET)),
    Kind("safetensors", ("net.safetensors", "fuzzed_net.py"),
         _bytes("net.safetensors", change_safetensors, flip_bytes),
         ("export", "net.safetensors", *_NET)),
    Kind("named config", ("llama.pt",), _config, ("export", "llama.pt", *EXPORT)),
    Kind("config file", ("llama_weights.pt", "config.json"), _bytes("config.json", change_json),
         ("export", "llama_weights.pt", "--model", "llama", "--config", "config.json", *EXPORT)),
    Kind("bundle file", ("bundle",), _bundle_file, _RUN),
    Kind("manifest, run", ("bundle",), _bytes("bundle/manifest.json", change_json), _RUN),
    Kind("manifest, inspect", ("bundle",), _bytes("bundle/manifest.json", change_json, flip_bytes),
         ("inspect", "bundle", "-v")),
    Kind("graph", ("bundle",), _signed("ort/model.onnx", change_graph), _RUN),
    Kind("weights", ("bundle",), _signed("model.onnx.data", flip_bytes), _RUN),
    Kind("arrays", ("bundle", "arrays.npz"), _bytes("arrays.npz", change_zip, flip_bytes),
         ("run", "bundle", "--inputs", "arrays.npz", "-o", "outputs.npz")),
    Kind("onnx, whole", (), _graph, ("export", "model.onnx", "-o", OUT, "--whole", "--no-verify")),
    Kind("onnx", (), _graph, ("export", "model.onnx", *EXPORT)),
]  # fmt: skip
WEIGHTS: Mapping[str, int] = {
    "graph": 5,
    "zip checkpoint": 3,
    "manifest, run": 2,
    "onnx, whole": 4,
    "onnx": 2,
}


def prepare(kind: Kind, inputs: Path, folder: Path, random: Random) -> str:
    """Copy what a case needs into `folder` and change it; return what was changed."""
    for name in kind.inputs:
        copy = shutil.copytree if (inputs / name).is_dir() else shutil.copyfile
        copy(inputs / name, folder / name)
    return kind.mutate(folder, random)
