"""Bundles and arrays that are not as they should be: one message, exit code 1, no trace.

Each row of a table is a way to spoil what a command is given, and words of the message.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import assert_refused, invoke

Spoil = Callable[[Path], object]


def write(content: bytes) -> Spoil:
    return lambda path: path.write_bytes(content)


def nothing(path: Path) -> None:
    """Leave what is there, or is not."""


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
