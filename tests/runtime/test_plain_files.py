"""Files of settings: ordinary ones, of a usual size, that a reader can follow."""

import os
from pathlib import Path

import pytest

from intaglio.runtime.plain_files import parse_json, read_json, read_text, require_ordinary


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
