"""A bundle is put in its place whole or not at all, whatever happens meanwhile."""

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from intaglio.errors import BundleError
from intaglio.exporter.writing import bundle_writer as bundle
from intaglio.exporter.writing.bundle_writer import BundleWriter
from intaglio.runtime.graph_entry import MAIN, GraphEntry
from intaglio.runtime.manifest import Manifest


def manifest(name: str) -> Manifest:
    return Manifest(
        source={"name": name, "sha256": "0" * 64, "format": "torch"},
        graphs={MAIN: GraphEntry(inputs=(), outputs=(), states=(), past_length=False, targets={})},
        files={},
    )


def write(place: Path, name: str, *, force: bool = False) -> Manifest:
    with BundleWriter(place, force=force) as writer:
        (writer.path / "ort").mkdir()
        (writer.path / "ort" / "model.onnx").write_text(name)
        return writer.commit(manifest(name))


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def held(place: Path) -> str:
    """Which export stands at `place`, checked by the hash in its manifest; empty if none does."""
    if not place.exists():
        return ""
    found = Manifest.load(place / "manifest.json")
    data = (place / "ort" / "model.onnx").read_bytes()
    assert hashlib.sha256(data).hexdigest() == found.files["ort/model.onnx"].sha256
    assert data.decode() == found.source["name"]
    return data.decode()


def test_a_commit_puts_everything_in_place_with_size_and_hash(tmp_path: Path) -> None:
    """Every file but manifest and report is listed, and nothing else is left behind."""
    place = tmp_path / "new" / "bundle"
    with BundleWriter(place) as writer:
        (writer.path / "model.onnx").write_bytes(b"graph")
        (writer.path / "report.json").write_text("{}")
        written = writer.commit(manifest("a"))

    assert entries(place.parent) == ["bundle"]
    assert written == Manifest.load(place / "manifest.json")
    assert list(written.files) == ["model.onnx"]
    assert written.files["model.onnx"].bytes == 5
    assert written.files["model.onnx"].sha256 == hashlib.sha256(b"graph").hexdigest()
    assert place.stat().st_mode == place.parent.stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_export_leaves_the_old_bundle_alone(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """Ctrl-C and errors remove the attempt."""
    place = tmp_path / "bundle"
    write(place, "old")

    def interrupted() -> None:
        with BundleWriter(place, force=True) as writer:
            (writer.path / "model.onnx").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        interrupted()

    assert entries(tmp_path) == ["bundle"]
    assert held(place) == "old"


def test_an_existing_bundle_is_refused_before_any_work(tmp_path: Path) -> None:
    """Entering the context is what refuses, and --force is named."""
    place = tmp_path / "bundle"
    write(place, "old")

    with pytest.raises(BundleError, match=r"exists\. Replace it with --force"):
        BundleWriter(place).__enter__()
    assert entries(tmp_path) == ["bundle"]


def test_force_replaces_a_bundle_and_leaves_nothing_else(tmp_path: Path) -> None:
    """The old one is gone when the new one stands; a link to it still leads there."""
    place, link = tmp_path / "bundle", tmp_path / "link"
    write(place, "old")
    link.symlink_to(place)

    write(link, "new", force=True)

    assert held(place) == "new"
    assert link.is_symlink()
    assert entries(tmp_path) == ["bundle", "link"]


@pytest.mark.parametrize("suffix", ["", ".failed"])
@pytest.mark.parametrize("kind", ["file", "folder", "link", "other manifest"])
def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path, kind: str, suffix: str) -> None:
    """Even with force: a mistyped destination must not cost a folder of work."""
    place = tmp_path / "bundle"
    taken = tmp_path / f"bundle{suffix}"
    if kind == "file":
        taken.write_text("mine")
    elif kind == "link":
        taken.symlink_to(tmp_path)
    else:
        taken.mkdir()
        (taken / ("notes" if kind == "folder" else "manifest.json")).write_text('{"name": "app"}')
    before = entries(tmp_path)

    with pytest.raises(BundleError, match="is not a bundle, so it is not replaced"):
        BundleWriter(place, force=True).__enter__()
    assert entries(tmp_path) == before


def test_a_failed_attempt_is_kept_beside_and_replaces_an_older_one(tmp_path: Path) -> None:
    """The destination is not touched, with or without a bundle there."""
    place = tmp_path / "bundle"
    write(place, "old")
    for name in ("first", "second"):
        with BundleWriter(place, force=True) as writer:
            (writer.path / "ort").mkdir()
            (writer.path / "ort" / "model.onnx").write_text(name)
            kept = writer.fail(manifest(name))

        assert held(kept) == name
        assert entries(tmp_path) == ["bundle", "bundle.failed"]
    assert held(place) == "old"


def test_clearing_leaves_what_is_open_to_whoever_reads_it(tmp_path: Path) -> None:
    """A session of the first attempt may still have its weights mapped when another is written."""
    with BundleWriter(tmp_path / "bundle") as writer:
        (writer.path / "ort").mkdir()
        file = writer.path / "ort" / "data"
        file.write_bytes(b"first")
        with file.open("rb") as opened:
            writer.clear()
            assert list(writer.path.iterdir()) == []
            assert opened.read() == b"first"
        writer.commit(manifest("new"))


def test_a_bundle_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """The slower of two exports to one place fails, and the faster one's bundle stays."""
    place = tmp_path / "bundle"
    with BundleWriter(place) as slow:
        write(place, "fast")
        with pytest.raises(BundleError, match="exists"):
            slow.commit(manifest("slow"))

    assert held(place) == "fast"
    assert entries(tmp_path) == ["bundle"]


def test_an_interruption_between_the_renames_brings_the_old_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C does not leave the place empty, also where the kernel cannot exchange names."""
    place = tmp_path / "bundle"
    write(place, "old")
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(bundle, "exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(place, "new", force=True)

    assert held(place) == "old"
    assert entries(tmp_path) == ["bundle"]


@pytest.mark.parametrize("operation", ["_lock", "_sync", "_sync_entry", "exchange"])
def test_an_interruption_of_any_operation_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Before and after each: the old bundle or the new one stands alone."""
    place = tmp_path / "bundle"
    real = getattr(bundle, operation)
    for late in (False, True):
        write(place, "old", force=True)

        def interrupted(*arguments: Path, late: bool = late) -> object:
            if late:
                real(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(bundle, operation, interrupted)
            with pytest.raises(KeyboardInterrupt):
                write(place, "new", force=True)

        assert held(place) in ("old", "new")
        assert entries(tmp_path) == ["bundle"]


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    """The file system's refusal is told with the destination."""
    (tmp_path / "file").write_text("")

    with pytest.raises(BundleError, match=r"file/bundle cannot be written"):
        BundleWriter(tmp_path / "file" / "bundle").__enter__()


# Forks a process for every n, which replaces a bundle and dies at its nth operation.
FORKS = """
import os, resource, signal, sys
from itertools import count
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import test_bundle_writer
from test_bundle_writer import write

OPERATIONS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "open", "ctypes.dlsym")

def die_at_operation(n):
    def hook(event, args):
        nonlocal n
        if event in OPERATIONS:
            n -= 1
            if n == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def die_at_byte(n):
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40 * n, 40 * n))

def fail_at_byte(n):
    resource.setrlimit(resource.RLIMIT_FSIZE, (40 * n, 40 * n))

if sys.argv[3] == "without":
    test_bundle_writer.bundle.exchange = lambda *_: False
for n in count(1):
    place = Path(str(n), "bundle")
    write(place, "old")
    if (child := os.fork()) == 0:
        globals()[sys.argv[2]](n)
        try:
            write(place, "new", force=True)
        except test_bundle_writer.BundleError as error:
            Path("said").write_text(str(error)[-35:])
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code)
    if code == 0:
        break
"""


def run_forks(folder: Path, fault: str, exchange: str) -> list[tuple[Path, int]]:
    """The places of bundles, and how the processes ended that replaced them."""
    command = [sys.executable, "-P", "-c", FORKS, str(Path(__file__).parent), fault, exchange]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    codes = map(int, done.stdout.split())
    return [(folder / str(n) / "bundle", code) for n, code in enumerate(codes, 1)]


@pytest.mark.parametrize("fault", ["die_at_operation", "die_at_byte"])
@pytest.mark.parametrize("exchange", ["with", "without"])
def test_a_killed_export_leaves_the_old_bundle_or_the_new_one(
    tmp_path: Path, fault: str, exchange: str
) -> None:
    """Killed at any file operation or within any write; the next run clears up.

    Where names cannot be exchanged the place may be empty, until the next run.
    """
    seen = set()
    *killed, (_, last) = run_forks(tmp_path, fault, exchange)
    for place, code in killed:
        assert code == -(signal.SIGKILL if fault == "die_at_operation" else signal.SIGXFSZ)
        seen.add(held(place))

        with pytest.raises(BundleError, match=r"exists\. Replace it with --force"):
            write(place, "next")
        write(place, "next", force=True)
        assert held(place) == "next"
        assert entries(place.parent) == ["bundle"]

    assert last == 0
    assert len(killed) > 10
    if fault == "die_at_byte":
        assert seen == {"old"}
    else:
        assert seen == ({"old", "new"} if exchange == "with" else {"old", "", "new"})


def test_a_full_disk_is_told_and_leaves_the_old_bundle_alone(tmp_path: Path) -> None:
    """At any byte of any file; what was written before is removed."""
    *refused, (_, last) = run_forks(tmp_path, "fail_at_byte", "with")
    for place, code in refused:
        assert code == 1
        assert held(place) == "old"
        assert entries(place.parent) == ["bundle"]

    assert last == 0
    assert (tmp_path / "said").read_text() == "Make room, or choose another place."


def test_the_attempt_of_a_living_process_is_not_cleared(tmp_path: Path) -> None:
    """Two exports to one place do not tear each other's files away."""
    place = tmp_path / "bundle"
    with BundleWriter(place) as first:
        (first.path / "model.onnx").write_text("a")
        with BundleWriter(place) as second:
            assert (first.path / "model.onnx").exists()
            assert first.path != second.path
