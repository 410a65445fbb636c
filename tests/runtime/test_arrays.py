"""Arrays from a file: those that are there, and no object, memory or wait beyond them."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intaglio.errors import InputError
from intaglio.runtime import arrays
from intaglio.runtime.arrays import read_npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_by_name(save: Callable[..., None], tmp_path: Path) -> None:
    """Of any order of memory, compressed or not."""
    arrays = {
        "ids": np.arange(6).reshape(2, 3),
        "turned": np.arange(6.0).reshape(2, 3).T,
        "one": np.array(5),
    }
    save(tmp_path / "x.npz", **arrays)
    found = read_npz(tmp_path / "x.npz")

    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def archive(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return out.getvalue()


def array(value: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, value, allow_pickle=True)
    return out.getvalue()


WHOLE = array(np.arange(100))


def claims(*shape: int) -> bytes:
    """A header of this shape before a few bytes."""
    out = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue() + bytes(64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a zip"),
        (b"no arrays", "not a zip"),
        (WHOLE, "not a zip"),
        (archive(x=WHOLE)[:-30], "not a zip"),
        (archive(x=b""), "magic"),
        (archive(x=b"text"), "magic"),
        (archive(x=WHOLE[:-8]), "says that it has the shape"),
        (archive(x=claims(10**17)), "says that it has the shape"),
        (archive(x=claims(2**32, 2**32)), "says that it has the shape"),
        (archive(x=claims(-1)), "says that it has the shape"),
        (archive(x=array(np.array([print]))), "allow_pickle=False"),
        (archive(x=pickle.dumps(print)), "magic"),
        (archive(x=array(np.array("abc")).replace(b"b\0\0\0", b"b\0\0\x7f")), "no Unicode"),
        (archive(x=array(np.array("abc", ">U3")).replace(b"\0\0\0b", b"\0\0\xd8b")), "no Unicode"),
    ],
)
def test_what_is_no_file_of_plain_arrays_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    """With the file's name, and how to write one."""
    (tmp_path / "x.npz").write_bytes(content)

    with pytest.raises(InputError, match=rf"(?s)x\.npz cannot be read.*{message}.*"):
        read_npz(tmp_path / "x.npz")


def test_what_never_ends_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")

    for name in ("pipe.npz", "zero.npz", "."):
        with pytest.raises(InputError, match="not an ordinary file"):
            read_npz(tmp_path / name)
    with pytest.raises(InputError, match="No such file"):
        read_npz(tmp_path / "absent.npz")


def test_more_than_there_is_memory_is_refused_before_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compression makes a large file of a small one."""
    np.savez_compressed(tmp_path / "x.npz", zeros=np.zeros(10**6))
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PHYS_PAGES" else 4096)

    with pytest.raises(InputError, match="more than there is memory"):
        read_npz(tmp_path / "x.npz")


def test_a_small_file_that_holds_a_large_array_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compression makes a thousand bytes of one, and the memory would be taken."""
    np.savez_compressed(tmp_path / "x.npz", zeros=np.zeros(10**6))
    assert read_npz(tmp_path / "x.npz")["zeros"].shape == (10**6,)
    monkeypatch.setattr(arrays, "LARGEST_BLOWN", 10**6)

    with pytest.raises(InputError, match=r"it has \d+ bytes, and says that it holds 8000128"):
        read_npz(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", zeros=np.zeros(10**6))
    assert read_npz(tmp_path / "x.npz")["zeros"].shape == (10**6,)
