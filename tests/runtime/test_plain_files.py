"""Files of settings: ordinary ones, of a usual size, that a reader can follow."""

import os
from pathlib import Path

import pytest

from intaglio.runtime.plain_files import (
    copy_folder,
    leads_away,
    parse_json,
    read_json,
    read_text,
    require_ordinary,
)


def test_a_pipe_a_device_and_a_folder_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="not an ordinary file"):
            require_ordinary(path)
    with pytest.raises(OSError, match="no file is called so"):
        require_ordinary("a\0b")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2]")

    assert read_json(tmp_path / "a.json") == [1, 2]
    with pytest.raises(OSError, match="6 bytes, more than 5"):
        read_text(tmp_path / "a.json", most=5)


def test_what_is_nested_without_end_is_no_json() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


def test_of_a_folder_the_ordinary_files_are_copied(tmp_path: Path) -> None:
    """Links to files too, as Hugging Face's cache has them; no pipe, device or circle."""
    folder, out = tmp_path / "folder", tmp_path / "out"
    (folder / "below").mkdir(parents=True)
    out.mkdir()
    for name in ("a.json", "below/b.json", "c.bin", "below/d.bin"):
        (folder / name).write_text(name)
    (folder / "link.json").symlink_to("a.json")
    (folder / "up").symlink_to("..")
    (tmp_path / "secret").write_text("")
    (folder / "secret.json").symlink_to("../secret")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "nowhere").symlink_to("absent")
    os.mkfifo(folder / "pipe")

    copy_folder(folder, out, without=(".bin",))

    copied = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    assert sorted(copied) == ["a.json", "below/b.json", "link.json"]


def test_a_cache_of_hugging_face_leads_to_its_blobs(tmp_path: Path) -> None:
    """And nothing else leads out of a folder."""
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    for name in ("blobs/aa", "secret"):
        (tmp_path / name).write_text("")
    (snapshot / "config.json").symlink_to("../../blobs/aa")
    (snapshot / "other.json").symlink_to("../../secret")
    (snapshot / "own.json").write_text("")
    away = {path.name for path in snapshot.iterdir() if leads_away(path, snapshot)}
    assert away == {"other.json"}
