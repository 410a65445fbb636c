"""Other people's mistakes and malice: one message that says what and where, exit code 1, no trace.

Each row of a table is a way to spoil what a command is given, and words of the message.
"""

import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from intaglio.cli import commands
from intaglio.cli.frame import app

Spoil = Callable[[Path], object]

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, vocab=8, width=4):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.head = nn.Linear(width, vocab)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))
"""
MODEL = "spoiled_net:Net"


def invoke(*arguments: str | Path) -> Result:
    assert commands
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="intaglio")


def assert_refused(result: Result, message: str) -> None:
    """Exit code 1, one message on stderr, nothing on stdout, no traceback."""
    assert result.exit_code == 1, result.output
    assert re.search(rf"(?s)intaglio: .*{message}", result.stderr), result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def weights(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    state: dict[str, Any] = {
        "embed.weight": torch.randn(8, 4),
        "head.weight": torch.randn(8, 4),
        "head.bias": torch.randn(8),
    }
    return {name: value for name, value in {**state, **changes}.items() if value is not None}


def saved(state: Any, *, legacy: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(state, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def zipped(method: int, members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def overlapping() -> bytes:
    """Every member of the directory leads to the bytes of the largest one."""
    data = bytearray(zipped(zipfile.ZIP_STORED, {"a/data.pkl": b"x" * 5000, "a/data/0": b"y"}))
    first, second = (match.start() for match in re.finditer(b"PK\x01\x02", data))
    for field in (slice(20, 28), slice(42, 46)):  # sizes and offset
        data[second + field.start : second + field.stop] = data[
            first + field.start : first + field.stop
        ]
    return bytes(data)


def tensors(header: Any, size: int = 0) -> bytes:
    """A safetensors file of this header, before `size` bytes."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def entry(begin: int, end: int, *shape: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


def write(content: bytes) -> Spoil:
    return lambda path: path.write_bytes(content)


def nothing(path: Path) -> None:
    """Leave what is there, or is not."""


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # a path of a socket must be short


DEFLATED = zipped(zipfile.ZIP_DEFLATED, {**members(saved(weights())), "archive/x": bytes(10**7)})
WHOLE = saved(weights())
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)

FILES: dict[str, tuple[Spoil, str]] = {
    "missing": (nothing, "there is no such file"),
    "empty": (write(b""), "is empty"),
    "truncated": (write(WHOLE[: len(WHOLE) // 2]), "truncated or damaged"),
    "truncated, legacy": (write(saved(weights(), legacy=True)[:-40]), "truncated or damaged"),
    "picture": (write(PNG), "neither a file of torch.save nor safetensors"),
    "program": (write(b"\x7fELF" + bytes(100)), "neither a file of torch.save nor safetensors"),
    "text": (write(b"hello world\n" * 20), "neither a file of torch.save nor safetensors"),
    "directory": (Path.mkdir, "is a directory"),
    "pipe": (os.mkfifo, "a pipe, a socket or a device"),
    "socket": (listen, "a pipe, a socket or a device"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a pipe, a socket or a device"),
    "loop of links": (lambda path: path.symlink_to(path), "cannot be read|no such file"),
    "other zip": (write(zipped(zipfile.ZIP_STORED, {"a": b"b"})), "not one that torch.save writes"),
    "compressed bomb": (write(DEFLATED), "was compressed, or made to exhaust memory"),
    "overlapping members": (write(overlapping()), "says that it holds|truncated or damaged"),
    "no state dict": (write(saved({"epoch": 1})), "has no state dict"),
    "header of terabytes": (write(struct.pack("<Q", 2**42) + b'{"a":{}}'), "safetensors"),
    "overlapping tensors": (
        write(tensors({"a": entry(0, 16, 4), "b": entry(8, 24, 4)}, 24)),
        "not a whole safetensors",
    ),
    "offsets beyond the end": (write(tensors({"a": entry(0, 2**40, 2**38)}, 16)), "safetensors"),
    "shape that overflows": (write(tensors({"a": entry(0, 16, 2**40, 2**40)}, 16)), "safetensors"),
    "header of no objects": (write(tensors([1, 2], 16)), "neither a file|safetensors"),
    "missing key": (write(saved(weights(**{"head.bias": None}))), "Missing from.*head.bias"),
    "unexpected key": (write(saved(weights(extra=torch.ones(1)))), "Unexpected in.*extra"),
    "wrong shape": (
        write(saved(weights(**{"head.bias": torch.ones(9)}))),
        r"head.bias: \[9\] in the file, \[8\] in the model",
    ),
    "one number as terabytes": (
        write(saved(weights(**{"head.bias": torch.ones(1).expand(2**44)}))),
        r"\[17592186044416\] in the file",
    ),
    "NaN": (write(saved(weights(**{"head.bias": torch.full((8,), torch.nan)}))), "bias' holds NaN"),
    "Inf": (write(saved(weights(**{"head.bias": torch.full((8,), torch.inf)}))), "bias' holds Inf"),
    "sparse": (
        write(saved(weights(**{"head.weight": torch.ones(8, 4).to_sparse()}))),
        "'head.weight' is sparse",
    ),
    "without data": (
        write(saved(weights(**{"head.bias": torch.ones(8, device="meta")}))),
        "'head.bias' is without data",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run, with the code of a module."""
    (tmp_path / "spoiled_net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_checkpoint_of_the_model(name: str, folder: Path) -> None:
    spoil, message = FILES[name]
    spoil(folder / "model.pt")

    assert_refused(invoke("export", "model.pt", "-o", "out", "--model", MODEL), message)
    assert not list(folder.glob("*out*"))


# Opcodes that make the folder `planted` where a reader lets them, each by another instruction.
PLANTS = {
    "GLOBAL, REDUCE": b"cos\nmkdir\nX\x07\0\0\0planted\x85R0",
    "STACK_GLOBAL": b"X\x02\0\0\0osX\x05\0\0\0mkdir\x93X\x07\0\0\0planted\x85R0",
    "INST": b"(X\x07\0\0\0plantedios\nmkdir\n0",
    "OBJ": b"(cos\nmkdir\nX\x07\0\0\0plantedo0",
    "NEWOBJ": b"cos\nmkdir\nX\x07\0\0\0planted\x85\x810",
    "eval": b"cbuiltins\neval\nX\x21\0\0\0__import__('os').mkdir('planted')\x85R0",
}


def plant(container: str, opcodes: bytes) -> bytes:
    """A file of weights with `opcodes` at the beginning of its pickle."""
    if container == "pickle":
        plain = pickle.dumps({"a": 1}, protocol=2)
        return plain[:2] + opcodes + plain[2:]
    if container == "zip":
        held = members(WHOLE)
        name = next(name for name in held if name.endswith("data.pkl"))
        held[name] = held[name][:2] + opcodes + held[name][2:]
        return zipped(zipfile.ZIP_STORED, held)
    data = saved(weights(), legacy=True)
    at = data.index(b"\x80\x02", data.index(b"type_sizes"))
    return data[: at + 2] + opcodes + data[at + 2 :]


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("opcode", PLANTS)
def test_a_pickle_that_runs_code(container: str, opcode: str, folder: Path) -> None:
    """Whatever the instruction, it is not followed, and the way out is named."""
    (folder / "model.pt").write_bytes(plant(container, PLANTS[opcode]))

    result = invoke("export", "model.pt", "-o", "out", "--model", MODEL)

    assert_refused(result, "any code|truncated or damaged")
    assert not (folder / "planted").exists()


def test_the_plants_are_live(folder: Path) -> None:
    """A careless reader runs them: the test before proves something."""
    for opcode in PLANTS.values():
        data = plant("zip", opcode)
        content = members(data)[next(n for n in members(data) if n.endswith("data.pkl"))]
        with pytest.raises((pickle.UnpicklingError, TypeError)):
            pickle.loads(content)  # stops at the first tensor, or as mkdir is no class
        if opcode != PLANTS["NEWOBJ"]:
            (folder / "planted").rmdir()


LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 1}

CONFIGS: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "config.json is not valid JSON"),
    "nested without end": ("[" * 100_000, "config.json is not valid JSON"),
    "no table": ("[1]", "config.json is no table of keys"),
    "unknown key": ('{"hiden_size": 16}', "has unknown 'hiden_size' .perhaps 'hidden_size'."),
    "text for a number": ('{"hidden_size": "16"}', "hidden_size = '16'; it should be an integer"),
    "a fraction": ('{"num_layers": 1.5}', "num_layers = 1.5; it should be an integer"),
    "zero": ('{"num_heads": 0}', "num_heads = 0; it should be an integer of at least 1"),
    "negative": ('{"num_layers": -1}', "num_layers = -1"),
    "true": ('{"num_layers": true}', "num_layers = True"),
    "no number": ('{"norm_eps": NaN}', "norm_eps = nan"),
    "terabytes": ('{"hidden_size": 1048576}', "other shapes than the model"),
    "beyond 64 bits": ('{"vocab_size": 10000000000000000000000}', "vocab_size|cannot be built"),
    "layers without end": ('{"num_layers": 1000000000}', "more than .* parameters"),
    "sizes that do not divide": ('{"num_heads": 3}', "cannot be built|other shapes"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_does_not_fit(name: str, folder: Path, checkpoint: Path) -> None:
    """Refused before memory is taken for what it asks."""
    text, message = CONFIGS[name]
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    torch.save(state, folder / "model.pt")
    if text.startswith("{") and text != "{":
        text = text.replace("{", json.dumps(LLAMA)[:-1] + ", ")
    (folder / "config.json").write_text(text)

    options = ["--model", "llama", "--config", "config.json"]
    assert_refused(invoke("export", "model.pt", "-o", "out", *options), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "lama"], "no model 'lama', perhaps 'llama'"),
        (["--model", "nowhere:Net"], "no module 'nowhere'"),
        (["--model", "spoiled_net:Nett"], "spoiled_net has no callable 'Nett'"),
        (["--model", "./spoiled_net.py:Net"], "name its module"),
        (["--model", MODEL, "--config", "absent.json"], "absent.json cannot be read"),
        (["--model", MODEL, "--key", "ema"], "nothing under --key 'ema'"),
        ([], "does not say which model"),
        (["--model", MODEL, "--pass", "x.py:f"], "--allow-code"),
    ],
)
def test_options_that_do_not_fit_a_whole_checkpoint(
    options: list[str], message: str, folder: Path
) -> None:
    (folder / "model.pt").write_bytes(WHOLE)

    assert_refused(invoke("export", "model.pt", "-o", "out", *options), message)


def change_byte(name: str) -> Spoil:
    def spoil(bundle: Path) -> None:
        content = bytearray((bundle / name).read_bytes())
        content[len(content) // 2] ^= 1
        (bundle / name).write_bytes(content)

    return spoil


def change(where: str, value: Any) -> Spoil:
    """Set one place of the manifest, its keys joined by dots, to `value`."""

    def spoil(bundle: Path) -> None:
        path = bundle / "manifest.json"
        tree = json.loads(path.read_text())
        *keys, last = [int(key) if key.isdecimal() else key for key in where.split("/")]
        place = tree
        for key in keys:
            place = place[key]
        place[last] = value
        path.write_text(json.dumps(tree))

    return spoil


def rewrite(old: str, new: str) -> Spoil:
    def spoil(bundle: Path) -> None:
        path = bundle / "manifest.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return spoil


def replace(name: str, make: Spoil) -> Spoil:
    def spoil(bundle: Path) -> None:
        (bundle / name).unlink()
        make(bundle / name)

    return spoil


DATA = "ort/model.onnx"
BUNDLES: dict[str, tuple[Spoil, str]] = {
    "no bundle": (lambda bundle: (bundle / "manifest.json").unlink(), "has no manifest.json"),
    "changed graph": (change_byte(DATA), "was changed after export"),
    "changed weights": (change_byte("model.onnx.data"), "was changed after export"),
    "missing graph": (replace(DATA, nothing), f"lacks the file '{DATA}'"),
    "missing weights": (replace("model.onnx.data", nothing), "lacks the file"),
    "pipe for a graph": (replace(DATA, os.mkfifo), "not an ordinary file"),
    "folder for weights": (
        replace("model.onnx.data", lambda path: path.mkdir()),
        "not an ordinary",
    ),
    "link out": (replace(DATA, lambda path: path.symlink_to("/etc/passwd")), "leaves the bundle"),
    "manifest elsewhere": (
        replace("manifest.json", lambda path: path.symlink_to("/etc/os-release")),
        "leaves the bundle",
    ),
    "loop of links": (replace(DATA, lambda path: path.symlink_to(path)), "leaves the bundle"),
    "absolute path": (change("graphs/main/targets/ort/path", "/etc/passwd"), "leaves the bundle"),
    "path upwards": (change("graphs/main/targets/ort/data", ["../x"]), "leaves the bundle"),
    "path with a null": (change("graphs/main/targets/ort/path", "a\0b"), "leaves the bundle"),
    "newer schema": (change("schema_version", 3), "has schema version 3"),
    "unknown key": (change("novelty", 1), "unknown key 'novelty'"),
    "key twice": (rewrite('"limits":', '"limits": {}, "limits":'), "key 'limits' comes twice"),
    "no number": (rewrite('"steps": 70', '"steps": NaN'), "NaN is no number"),
    "nested without end": (
        replace("manifest.json", write(b'{"schema_version":' * 100_000)),
        "nested too deeply",
    ),
    "no text": (replace("manifest.json", write(b"\xff\xfe")), "is not JSON"),
    "huge number": (rewrite('"steps": 70', '"steps": ' + "9" * 10_000), "is not JSON"),
    "unknown dimension": (
        change("graphs/main/outputs/0/shape/1", "depth"),
        "'depth', which no input has",
    ),
    "axis beyond the shape": (change("graphs/main/states/0/axis", 9), "axis 9 but 4 dimensions"),
    "cache without room": (
        change("graphs/main/states/0/shape/2", 7),
        "should have 'capacity' along its axis",
    ),
    "state of petabytes": (change("graphs/main/states/0/shape/1", 2**60), "nothing can hold"),
    "state of another size": (change("graphs/main/states/0/shape/1", 3), "but the manifest says"),
    "state of another type": (
        change("graphs/main/states/0/dtype", "float64"),
        "but the manifest says float64",
    ),
    "no graph of the name": (rewrite('"main": {', '"step": {'), "lacks the key 'main'"),
    "two states of one name": (
        change("graphs/main/states/1/input", "past_key_values.0.key"),
        "2 times",
    ),
    "unknown layout": (
        change("graphs/main/states/0/layout", "ring"),
        "is 'ring', should be one of",
    ),
    "a record of a pass": (change("graphs/main/passes/0", {"name": "x"}), "lacks the key"),
}


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_that_is_not_as_it_was_exported(name: str, bundle: Path, tmp_path: Path) -> None:
    spoil, message = BUNDLES[name]
    spoil(shutil.copytree(bundle, tmp_path / "copy"))

    result = invoke("run", tmp_path / "copy", "--inputs", tmp_path / "unread.npz")

    assert_refused(result, message)


ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "no time steps"),
    "another name": ({"ids": np.ones((1, 2), int)}, "no time steps"),
    "another name too": ({"input_ids": np.ones((1, 2), int), "x": np.ones(1)}, "no input 'x'"),
    "a fraction": ({"input_ids": np.ones((1, 2))}, "is float64, should be int64"),
    "text": ({"input_ids": np.array([["a", "b"]])}, "is <U1, should be int64"),
    "one dimension": ({"input_ids": np.ones(3, int)}, r"should be \[batch, time"),
    "three dimensions": ({"input_ids": np.ones((1, 2, 3), int)}, r"should be \[batch, time\]"),
    "no tokens": ({"input_ids": np.ones((1, 0), int)}, "0 time steps"),
    "no rows": ({"input_ids": np.ones((0, 2), int)}, "batch = 0"),
    "a token too large": ({"input_ids": np.array([[1, 256]])}, r"has 256 at \[0, 0\]; .* to 255"),
    "a negative token": ({"input_ids": np.array([[1], [-1]])}, r"has -1 at \[1, 0\]"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_the_bundle_does_not_take(name: str, bundle: Path, tmp_path: Path) -> None:
    arrays, message = ARRAYS[name]
    np.savez(tmp_path / "in.npz", **arrays)

    result = invoke("run", bundle, "--inputs", tmp_path / "in.npz", "-o", tmp_path / "out.npz")

    assert_refused(result, message)
    assert not (tmp_path / "out.npz").exists()


def test_memory_that_runs_out_is_the_environments_fault(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of numpy, of PyTorch and of C++: exit code 1, not a fault of intaglio."""
    from intaglio.runtime import Session

    for error in (
        MemoryError("Unable to allocate 8. TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("of a child:\nTraceback:\n  MemoryError: Unable to allocate 8. TiB"),
    ):

        def load(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(Session, "load", load)
        assert_refused(invoke("run", bundle, "--prompt", "a"), "there is not enough memory")


def test_what_a_terminal_cannot_show_is_shown_otherwise(bundle: Path, tmp_path: Path) -> None:
    """Halves of characters and marks of direction neither stop a command nor steer a terminal."""
    copy = shutil.copytree(bundle, tmp_path / "copy")
    change("source/name", "\ud800\u202e\x1b[31m.pt")(copy)
    shown, told = invoke("inspect", copy), invoke("inspect", copy, "--json")

    assert (shown.exit_code, told.exit_code) == (0, 0)
    assert "\N{REPLACEMENT CHARACTER}" * 3 + "[31m.pt" in shown.stdout
    assert json.loads(told.stdout)["manifest"]["source"]["name"] == "\ud800\u202e\x1b[31m.pt"


def test_a_tensor_is_what_safetensors_say(folder: Path) -> None:
    """The files of the table are refused for what is spoiled, since a whole one is read."""
    state: dict[str, Tensor] = weights()
    safetensors.torch.save_file(state, folder / "model.pt")

    options = ["-o", "out", "--model", MODEL, "--no-verify"]
    assert invoke("export", "model.pt", *options).exit_code == 0


def test_a_recipe_by_command_runs_no_code(tmp_path: Path) -> None:
    """Of the standard library neither: `os:system` with a config is a command line."""
    torch.save(weights(), tmp_path / "model.pt")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"model = 'os:system'\nconfig = {{command = 'mkdir {tmp_path}/ran'}}")

    for more in ([], ["--dry-run"]):
        given = ("export", tmp_path / "model.pt", "-o", tmp_path / "out", "--recipe", recipe)
        assert_refused(invoke(*given, *more), r"'os:system'.*--allow-code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "words",
    ["run b --prompt a", "verify b --against m", "merge a b -o c", "subnet s -o c --budget 3bits"],
)
def test_a_seed_is_no_negative_number(words: str) -> None:
    result = invoke(*words.split(), "--seed", "-1")
    assert result.exit_code == 2
    assert "greater than or equal to 0" in result.stderr
