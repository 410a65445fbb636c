"""Files and folders are the old or the new ones whatever kills their writer, and leave nothing."""

import ast
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed import after_calls

from intaglio import whole_files
from intaglio.whole_files import output, replacing, replacing_folder

ROOT = Path(__file__).parents[1]


def write_file(path: Path, content: str) -> None:
    with replacing(path) as draft, draft.open("w") as file:
        for character in content:
            file.write(character)
            file.flush()


def write_folder(path: Path, content: str) -> None:
    with replacing_folder(path) as draft:
        (draft / "one").write_text(content)
        (draft / "other").mkdir()
        (draft / "other" / "two").write_text(content)


def entries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def held(path: Path) -> str:
    """What is at `path`; a folder says the same twice."""
    if not path.is_dir():
        return path.read_text() if path.exists() else ""
    first, second = (path / name for name in ("one", "other/two"))
    assert first.read_text() == second.read_text()
    return first.read_text()


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_killed_after_any_call_the_old_or_the_new_one_stands(
    tmp_path: Path, write: Callable[[Path, str], None]
) -> None:
    """And the next writer clears what was left."""
    place, seen = tmp_path / "it", []
    for _ in after_calls(lambda: write(place, "old"), lambda: write(place, "new")):
        seen.append(held(place))
        write(place, "next")
        assert held(place) == "next"
        assert entries(tmp_path) == ["it"]

    assert len(seen) > 10
    assert set(seen) == {"old", "new"}
    assert seen == sorted(seen, reverse=True)


def test_where_names_cannot_be_exchanged_a_folder_may_be_absent_for_an_instant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_files, "exchange", lambda *_: False)
    place = tmp_path / "it"
    seen = [
        held(place)
        for _ in after_calls(lambda: write_folder(place, "old"), lambda: write_folder(place, "new"))
    ]

    assert {"old", "new"} <= set(seen) <= {"old", "", "new"}
    assert seen.count("") <= 4
    write_folder(place, "next")
    assert entries(tmp_path) == ["it"]


@pytest.mark.parametrize("kind", [replacing, replacing_folder, output])
def test_an_error_leaves_the_old_one_and_no_draft(tmp_path: Path, kind: Any) -> None:
    place = tmp_path / "it"
    (write_folder if kind is replacing_folder else write_file)(place, "old")

    with pytest.raises(KeyboardInterrupt), kind(place):
        raise KeyboardInterrupt

    assert held(place) == "old"
    assert entries(tmp_path) == ["it"]


def test_the_folder_of_what_a_user_names_is_made(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b" / "it"
    with output(place) as draft:
        draft.write_text("new")

    assert place.read_text() == "new"


@pytest.mark.parametrize("kind", [replacing, replacing_folder])
def test_what_cannot_be_written_is_told_by_its_own_name(tmp_path: Path, kind: Any) -> None:
    place = tmp_path / "absent" / "it"
    with pytest.raises(FileNotFoundError) as raised, kind(place):
        pass
    assert raised.value.filename == str(place)


def test_the_draft_of_a_living_writer_is_let_be(tmp_path: Path) -> None:
    """Also of another thread; and whoever ends last stands."""
    place, seen = tmp_path / "it", []

    def other() -> None:
        write_file(place, "other")
        seen.extend(entries(tmp_path))

    with replacing(place) as draft:
        draft.write_text("mine")
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(seen) == 2
    assert held(place) == "mine"


def test_what_others_put_in_the_way_is_stepped_over(tmp_path: Path) -> None:
    """Links, which nothing follows, pipes, which nothing waits for, folders, files linked twice."""
    place, mine = tmp_path / "it", tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / ".it.0.draft").symlink_to(mine)
    os.mkfifo(tmp_path / ".it.1.draft")
    (tmp_path / ".it.2.draft").mkdir()
    (tmp_path / ".it.3.draft").hardlink_to(mine)
    kept = {*entries(tmp_path)}

    write_file(place, "new")

    assert (held(place), held(mine)) == ("new", "mine")
    assert {*entries(tmp_path)} == {*kept, "it"}


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    """Nothing is looked for, however many files there are; nor is one left behind a living one."""
    place = tmp_path / "it"
    for number in (0, 1):
        (tmp_path / f".it.{number}.draft").write_text("a long draft of one that was killed")
    (tmp_path / ".other.0.draft").write_text("")
    write_file(place, "new")
    assert held(place) == "new"
    assert {*entries(tmp_path)} == {"it", ".other.0.draft"}


def test_where_there_are_no_locks_no_draft_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_files, "_lock", lambda _: None)
    with replacing(tmp_path / "it") as draft:
        draft.write_text("first")
        write_file(tmp_path / "it", "second")
        assert draft.read_text() == "first"
    assert held(tmp_path / "it") == "first"


def test_a_link_is_replaced_unless_the_user_named_it(tmp_path: Path) -> None:
    """A bundle from elsewhere may hold a link to a file of the user's."""
    mine, link = tmp_path / "mine", tmp_path / "link"
    mine.write_text("mine")
    link.symlink_to(mine)
    with output(link) as draft:
        draft.write_text("led on")
    assert (held(mine), link.is_symlink()) == ("led on", True)

    write_file(link, "new")
    assert (held(mine), held(link), link.is_symlink()) == ("led on", "new", False)


def test_a_pipe_stays_a_pipe() -> None:
    """So does /dev/stdout."""
    code = "from intaglio.whole_files import output\nwith output('/dev/stdout') as d: "
    done = subprocess.run(
        [sys.executable, "-P", "-c", code + "d.open('w').write('text')"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "text"
    with output("/dev/null") as draft:
        draft.write_text("x")
    assert Path("/dev/null").is_char_device()


# What writes elsewhere than at a place that is named: drafts of bundles, folders of its own.
ELSEWHERE = {
    "exporter/attempt.py": "the draft of a bundle",
    "exporter/sources/tokenizer_files.py": "a folder of its own",
    "exporter/writing/genai.py": "the draft of a bundle",
    "exporter/writing/graph_files.py": "the draft of a bundle",
    "exporter/writing/trt.py": "the draft of a bundle",
    "runtime/serving/repository.py": "the draft of a repository",
    "runtime/trt/build_child.py": "the draft of an engine",
    "src/intaglio/jobs/processes.py": "a folder of its own",
    "trt_plugins/compile_plugin.py": "a folder of its own",
}
WRITES = {"write_text", "write_bytes", "save_file"}


def writes(call: ast.Call) -> bool:
    """Whether a call writes a file under another name than that of a draft."""
    text, name = ast.unparse(call), ast.unparse(call.func)
    opened = name.split(".")[-1] == "open" and any(f"'{mode}" in text for mode in "wax")
    named = name.rpartition(".")[2] in WRITES or name == "torch.save"
    return (opened or named) and "draft" not in text


def test_whatever_is_written_is_written_whole() -> None:
    """Everything that writes a file does so to a draft, or says here where."""
    rooms = ("src", "exporter", "models", "passes", "report", "runtime", "trt_plugins")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    found = {
        path.relative_to(ROOT).as_posix(): [
            node.lineno
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call) and writes(node)
        ]
        for path in files
        if any(word in (text := path.read_text()) for word in (*WRITES, "open(", "torch.save"))
    }
    assert {path: lines for path, lines in found.items() if lines and path not in ELSEWHERE} == {}
    assert {path for path in ELSEWHERE if not found[path]} == set()
