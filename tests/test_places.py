"""Where something is to be written is looked at before the work, and nothing is left by that."""

import os
from pathlib import Path

import pytest

from intaglio.errors import OptionError
from intaglio.places import require_file, require_writable


def test_a_place_for_a_file_may_lack_its_folders(tmp_path: Path) -> None:
    """Looking makes none of them, and leaves nothing beside."""
    require_file(tmp_path / "a" / "b" / "c.pt", force=False)

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_needs_force(tmp_path: Path) -> None:
    """A link that leads nowhere is there, too."""
    there, link = tmp_path / "a.pt", tmp_path / "link.pt"
    there.write_text("kept")
    link.symlink_to(tmp_path / "none")

    for path in (there, link):
        with pytest.raises(OptionError, match=r"exists\. Replace it with --force"):
            require_file(path, force=False)
        require_file(path)
    assert there.read_text() == "kept"


def test_what_cannot_be_written_is_told_with_what_stands_in_the_way(tmp_path: Path) -> None:
    """A folder, a file among its folders, a system that takes none."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"is a folder\. Give the name of a file"):
        require_file(tmp_path)
    with pytest.raises(OptionError, match=r"file/a/b\.pt cannot be written: .*file is a file, not"):
        require_file(tmp_path / "file" / "a" / "b.pt")
    with pytest.raises(OptionError, match=r"none\.pt cannot be written: nothing can be made in /"):
        require_writable(Path("/proc/none.pt"))


def test_a_pipe_and_a_device_are_taken_as_they_are(tmp_path: Path) -> None:
    """Nothing is replaced there."""
    os.mkfifo(tmp_path / "pipe")

    require_file(tmp_path / "pipe", force=False)
    require_file("/dev/stdout", force=False)
