"""Other people's sources: one message that says what and where, exit code 1, no trace.

Each row of a table is a way to spoil what a command is given, and words of the message.
"""

import io
import json
import os
import pickle
import re
import socket
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from command_line import assert_refused, invoke
from torch import Tensor

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


def test_a_tensor_is_what_safetensors_say(folder: Path) -> None:
    """The files of the table are refused for what is spoiled, since a whole one is read."""
    state: dict[str, Tensor] = weights()
    safetensors.torch.save_file(state, folder / "model.pt")

    options = ["-o", "out", "--model", MODEL, "--no-verify"]
    assert invoke("export", "model.pt", *options).exit_code == 0
