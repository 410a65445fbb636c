"""Two directories change places at once where the kernel can, else nothing is done."""

import ctypes
import errno
from pathlib import Path

import pytest

from intaglio.exchange import exchange, replace_by_two_renames


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    return tmp_path / "one", tmp_path / "other"


def who(*paths: Path) -> list[str]:
    return [(path / "who").read_text() for path in paths]


def test_each_takes_the_place_of_the_other(pair: tuple[Path, Path]) -> None:
    """Linux can, on all file systems in use."""
    assert exchange(*pair)
    assert who(*pair) == ["other", "one"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.EPERM])
def test_where_it_is_impossible_nothing_is_done(
    pair: tuple[Path, Path], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old kernel, a file system that cannot, a sandbox that forbids."""

    class Library:
        def __init__(self, *_: object, **__: object) -> None: ...

        @staticmethod
        def renameat2(*_: object) -> int:
            ctypes.set_errno(code)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", Library)

    assert not exchange(*pair)
    assert who(*pair) == ["one", "other"]


def test_a_system_without_the_call(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())

    assert not exchange(*pair)


def test_another_refusal_is_an_error(pair: tuple[Path, Path]) -> None:
    """With both paths."""
    with pytest.raises(FileNotFoundError, match=r"one.*absent"):
        exchange(pair[0], pair[1].with_name("absent"))


def test_two_renames_do_the_same(pair: tuple[Path, Path]) -> None:
    new, place = pair
    replace_by_two_renames(new, place, place.with_name("retired"))

    assert who(place, place.with_name("retired")) == ["one", "other"]
