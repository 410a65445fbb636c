"""What a file claims is held to what it has; `tests/cli/test_bad_sources.py` has the table."""

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from intaglio.errors import SourceError
from intaglio.exporter.sources.kinds import exported_program as program
from intaglio.exporter.sources.untrusted import archive_names, is_archive, read_head


def test_what_pytorch_writes_is_as_large_as_it_says(tmp_path: Path) -> None:
    """Weights, and programs of torch.export."""
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pt")
    exported = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(exported, tmp_path / "b.pt2")

    assert "a/data.pkl" in archive_names(tmp_path / "a.pt")
    assert any(name.endswith("archive_format") for name in archive_names(tmp_path / "b.pt2"))
    assert read_head(tmp_path / "a.pt", 4) == b"PK\x03\x04"


def test_one_byte_more_than_there_is_is_refused(tmp_path: Path) -> None:
    """The limit is the file's own size, since nothing is compressed."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(1000))

    with pytest.raises(SourceError, match=r"says that it holds 1000: it was compressed"):
        archive_names(tmp_path / "x.zip")


def test_an_archive_whose_end_lies_is_damaged_and_not_a_fault(tmp_path: Path) -> None:
    """A locator of the 64-bit end that speaks of two disks: zipfile itself raises for it."""
    path = tmp_path / "a.pt"
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2)
    path.write_bytes(bytes(100) + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", *[0] * 7))

    assert is_archive(path)
    with pytest.raises(SourceError, match=r"a\.pt is truncated or damaged"):
        program.fits(path)


def test_a_file_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, who may read everything: the refusal is played."""
    (tmp_path / "x").write_text("x")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SourceError, match="x cannot be read: Permission denied"):
        read_head(tmp_path / "x")
