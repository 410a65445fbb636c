"""What `fuzz.py` gives the command line: whole inputs, and one mutation of them for each case."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import safetensors.torch
import torch
from fuzz_arguments import BRIEF, draw_arguments, draw_joining, draw_reading
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
from fuzz_settings import (
    change_folder,
    change_state,
    draw_recipe,
    draw_template,
    draw_tokenizer,
    plain_tokenizer,
)
from typer.testing import CliRunner

import intaglio
from intaglio import models
from intaglio.cli.frame import app
from intaglio.errors import IntaglioError
from intaglio.models import llama
from intaglio.runtime import Session
from intaglio.runtime.manifest import schema
from intaglio.runtime.schema import faults

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
ARGUMENTS = "arguments"  # of a case that draws its own, in JSON
MODULES = "modules"  # where the names of all modules are kept that an export imports
DATA = Path(__file__).parents[1] / "tests" / "data"
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
    session = Session.load(folder / "bundle")
    session.step({"input_ids": np.arange(6).reshape(2, 3)})
    session.state.save(folder / "state.npz")
    _write_directory(folder / "directory")
    write_graphs(folder / GRAPHS)
    shutil.copyfile(folder / "llama.pt", folder / "other.pt")
    shutil.copytree(folder / "bundle", folder / "honest")
    shutil.copyfile(DATA / "pairs.model", folder / "pairs.model")
    (folder / "text.txt").write_text("some text to measure with " * 20)
    _write_key(folder / "key")
    _write_adapters(folder, module)
    _use(folder)
    (folder / MODULES).write_text("\n".join(sys.modules))


def _use(folder: Path) -> None:
    """Run commands that do what they shall, so that all is imported that they import."""
    bundle, arrays = str(folder / "bundle"), str(folder / "arrays.npz")
    for line in (
        ("inspect", bundle, "--verbose"),
        ("run", bundle, "--prompt", "ab", "--steps", "2"),
        ("export", str(folder / "directory"), "-o", str(folder / "used"), *EXPORT[2:]),
        ("run", bundle, "--inputs", arrays, "-o", str(folder / "used.npz")),
        ("verify", bundle, "--against", str(folder / "llama.pt"), "--steps", "2"),
        ("profile", bundle, "--context", "4", "--prompt-length", "4", *BRIEF),
    ):
        CliRunner().invoke(app, line, prog_name="intaglio")


def _write_key(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    form = serialization.PrivateFormat.OpenSSH
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    plain = serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))


def _write_adapters(folder: Path, module: torch.nn.Module) -> None:
    """What a weight has more, and a LoRA of PEFT for the directory."""
    with torch.no_grad():
        next(module.parameters()).add_(0.1)
    models.save(folder / "tuned.pt", "llama", CONFIG, module)
    files = [str(folder / name) for name in ("llama.pt", "tuned.pt", "adapter.npz")]
    made = CliRunner().invoke(app, ["adapter", *files[:2], "-o", files[2]])
    assert made.exit_code == 0, made.output
    (folder / "peft").mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
                "task_type": "CAUSAL_LM", "bias": "none"}  # fmt: skip
    (folder / "peft" / "adapter_config.json").write_text(json.dumps(settings))
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    safetensors.torch.save_file(
        {f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_B.weight": torch.ones(8, 2)},
        folder / "peft" / "adapter_model.safetensors",
    )


def _write_directory(folder: Path) -> None:
    """A directory of Hugging Face, as small as they come."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        vocab_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(plain_tokenizer()))


def restore_state() -> int:
    """Restore a saved state and step on, as a program does; the exit code that it stands for."""
    try:
        session = Session.load("bundle")
        session.state.restore("state.npz")
        session.step({"input_ids": np.zeros((len(session.state.past_length), 1), np.int64)})
    except IntaglioError as error:
        print(error)
        return 1
    return 0


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


def _recipe(folder: Path, random: Random) -> str:
    content, what = draw_recipe(random)
    (folder / "recipe.toml").write_bytes(content)
    return what


def _arguments(folder: Path, random: Random) -> str:
    """Options of any value; beside them a recipe, a pipe and a file of code."""
    _recipe(folder, random)
    os.mkfifo(folder / "pipe")
    arguments = draw_arguments(random)
    (folder / ARGUMENTS).write_text(json.dumps(arguments))
    return " ".join(arguments).encode("utf-8", "backslashreplace").decode()


def _drawn(arguments: Callable[[Random], list[str]], *changes: Mutate) -> Mutate:
    """One of `changes`, given to a command that is drawn."""

    def mutate(folder: Path, random: Random) -> str:
        drawn = arguments(random)
        (folder / ARGUMENTS).write_text(json.dumps(drawn))
        return f"{' '.join(drawn[:2])}: {random.choice(changes)(folder, random)}"

    return mutate


def _directory(folder: Path, random: Random) -> str:
    return change_folder(folder / "directory", random)


def _state(folder: Path, random: Random) -> str:
    return change_state((folder / "state.npz").read_bytes(), folder, random)


def _tokenizer(folder: Path, random: Random) -> str:
    """A tokenizer in the bundle, which its manifest lists."""
    content, what = draw_tokenizer(random)
    _with_text(folder / "bundle", {"tokenizer": content})
    return what


def _template(folder: Path, random: Random) -> str:
    """A chat template in the bundle, which its manifest lists."""
    content, what = draw_template(random)
    tokenizer = json.dumps(plain_tokenizer()).encode()
    _with_text(folder / "bundle", {"tokenizer": tokenizer, "template": content})
    return what


def _with_text(bundle: Path, contents: Mapping[str, bytes]) -> None:
    manifest = bundle / "manifest.json"
    entry = json.loads(manifest.read_text())
    names = {"tokenizer": "tokenizer/tokenizer.json", "template": "tokenizer/chat_template.jinja"}
    (bundle / "tokenizer").mkdir()
    entry["text"] = {"tokenizer": None, "template": None, "eos": [5]}
    for part, content in contents.items():
        (bundle / names[part]).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        entry["files"][names[part]] = {"bytes": len(content), "sha256": sha256}
        entry["text"][part] = names[part]
    manifest.write_text(json.dumps(entry))


def _suite(folder: Path, random: Random) -> str:
    """Questions of a suite with other values and bytes."""
    lines = [
        {"kind": kind, "question": "ab", "answer": "b"}
        for kind in ("unsafe", "decoupled", "utility")
    ]
    changed = [change_json(json.dumps(line).encode(), random) for line in lines]
    content = b"\n".join(random.choice((json.dumps(line).encode(), change[0]))
                         for line, change in zip(lines, changed, strict=True))  # fmt: skip
    if random.random() < 0.2:
        content = flip_bytes(content, random)[0]
    (folder / "suite.jsonl").write_bytes(content)
    _with_text(folder / "bundle", {"tokenizer": json.dumps(plain_tokenizer()).encode()})
    return ", ".join(change[1] for change in changed)


def _peft(folder: Path, random: Random) -> str:
    """A LoRA of PEFT with another config or other bytes of weights."""
    name = random.choice(("adapter_config.json", "adapter_model.safetensors"))
    change = change_json if name.endswith("json") else change_safetensors
    content, what = random.choice((change, flip_bytes))(
        (folder / "peft" / name).read_bytes(), random
    )
    (folder / "peft" / name).write_bytes(content)
    return what


def _calibration(folder: Path, random: Random) -> str:
    """A folder of arrays and text, one of them changed, with links and pipes among them."""
    (folder / "calib").mkdir()
    arrays = (folder / "arrays.npz").read_bytes()
    (folder / "calib" / "a.npz").write_bytes(
        random.choice((change_zip, flip_bytes))(arrays, random)[0]
    )
    (folder / "calib" / "b.txt").write_text("some text " * random.choice((0, 1, 100)))
    what = random.choice(("link", "pipe", "folder", "empty", "no text"))
    other = folder / "calib" / random.choice(("c.txt", "c.npz"))
    if what == "link":
        other.symlink_to(random.choice(("/dev/zero", other.name, "..", "/etc/passwd")))
    elif what == "pipe":
        os.mkfifo(other)
    elif what == "folder":
        other.mkdir()
    else:
        other.write_bytes(b"" if what == "empty" else b"\xff" * 100)
    return what


def _valid_manifest(folder: Path, random: Random) -> str:
    """Change a manifest so that the schema still allows it."""
    manifest = folder / "bundle" / "manifest.json"
    content = manifest.read_bytes()
    said: list[str] = []
    while len(said) < random.choice((1, 2, 3)):
        changed, what = change_json(content, random)
        try:
            if any(faults(json.loads(changed), schema(), schema())):
                continue
        except (ValueError, RecursionError):
            continue
        content = changed
        said.append(what)
    manifest.write_bytes(content)
    return ", ".join(said)


_NET = ("--model", "fuzzed_net:Net", *EXPORT)
_RUN = ("run", "bundle", "--prompt", "ab", "--steps", "3")
_OTHER = _bytes("other.pt", change_zip, flip_bytes)
_MANIFEST = _bytes("bundle/manifest.json", change_json)

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
    Kind("recipe", ("llama.pt",), _recipe,
         ("export", "llama.pt", "--recipe", "recipe.toml", *EXPORT)),
    Kind("options", ("llama.pt", "other.pt", "bundle", "key", "text.txt", "arrays.npz",
                     "adapter.npz", "config.json"), _arguments, ()),
    Kind("checkpoints, joined", ("llama.pt", "other.pt", "text.txt"),
         _drawn(draw_joining, _OTHER, _config), ()),
    Kind("bundle, other commands", ("bundle", "honest", "key", "arrays.npz"),
         _drawn(draw_reading, _MANIFEST, _valid_manifest, _bundle_file,
                _signed("ort/model.onnx", change_graph)), ()),
    Kind("sentencepiece", ("llama.pt", "pairs.model"), _bytes("pairs.model", flip_bytes),
         ("export", "llama.pt", "--tokenizer", "pairs.model", *EXPORT)),
    Kind("directory", ("directory",), _directory, ("export", "directory", *EXPORT)),
    Kind("tokenizer", ("bundle",), _tokenizer,
         ("run", "bundle", "--prompt", "a" * 40 + "!b", "--steps", "2")),
    Kind("chat template", ("bundle",), _template,
         ("run", "bundle", "--chat", "--prompt", "ab", "--steps", "2")),
    Kind("suite", ("bundle", "llama.pt"), _suite,
         ("verify", "bundle", "--against", "llama.pt", "--steps", "2", "--behaviour", "suite.jsonl",
          "--answer-tokens", "2")),
    Kind("adapter", ("llama.pt", "adapter.npz"), _bytes("adapter.npz", change_zip, flip_bytes),
         ("export", "llama.pt", "--adapter", "a=adapter.npz", *EXPORT)),
    Kind("adapter of PEFT", ("directory", "peft"), _peft,
         ("export", "directory", "--adapter", "a=peft", *EXPORT)),
    Kind("calibration", ("llama.pt", "arrays.npz"), _calibration,
         ("export", "llama.pt", "--pass", "gptq", "--calib", "calib", *EXPORT)),
    Kind("valid manifest, run", ("bundle",), _valid_manifest, _RUN),
    Kind("valid manifest, verify", ("bundle", "llama.pt"), _valid_manifest,
         ("verify", "bundle", "--against", "llama.pt", "--steps", "4")),
    Kind("saved state", ("bundle", "state.npz"), _state, ()),
    Kind("onnx, whole", (), _graph, ("export", "model.onnx", "-o", OUT, "--whole", "--no-verify")),
    Kind("onnx", (), _graph, ("export", "model.onnx", *EXPORT)),
]  # fmt: skip
WEIGHTS: Mapping[str, int] = {
    "graph": 5,
    "zip checkpoint": 3,
    "manifest, run": 2,
    "onnx, whole": 4,
    "onnx": 2,
    "recipe": 3,
    "options": 3,
    "checkpoints, joined": 2,
    "bundle, other commands": 4,
    "valid manifest, run": 4,
    "valid manifest, verify": 2,
    "saved state": 4,
    "chat template": 2,
}


def prepare(kind: Kind, inputs: Path, folder: Path, random: Random) -> str:
    """Copy what a case needs into `folder` and change it; return what was changed."""
    for name in kind.inputs:
        copy = shutil.copytree if (inputs / name).is_dir() else shutil.copyfile
        copy(inputs / name, folder / name)
    return kind.mutate(folder, random)
