"""The channel to a child process: answers, errors of every kind, and the child's end."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from intaglio.errors import MissingExtraError, ProfileError, StateError
from intaglio.runtime.child_worker import Worker

CHILD = """
import os, signal, sys
from intaglio.errors import MissingExtraError, StateError
from intaglio.runtime.child_worker import serve

def add(a, b):
    print("noise")
    os.write(1, b"more noise")
    return a + b

def count(to, progress):
    for done in range(to):
        progress("counting", done / to)
    return to

def refuse():
    raise StateError("no room for 3 tokens.")

def lack():
    raise MissingExtraError("This", "hf")

def fail():
    return {}["absent"]

def die():
    os.kill(os.getpid(), getattr(signal, "SIGKILL"))

def abort():
    os.kill(os.getpid(), signal.SIGABRT)

def leave():
    sys.stderr.write("first\\nthe disk is gone\\n")
    os._exit(7)

serve({f.__name__: f for f in (add, count, refuse, lack, fail, die, abort, leave)})
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    (tmp_path / "child_of_tests.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("llama", "child_of_tests") as child:
        yield child


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_what_a_child_prints_does_not_disturb_its_answers(worker: Worker) -> None:
    assert worker.call("add", a=1, b=2) == 3
    assert worker.call("add", a="a", b="é") == "aé"


def test_a_method_tells_how_far_it_is(worker: Worker) -> None:
    """In order, before its answer; the child goes on."""
    heard: list[tuple[str, float | None]] = []

    assert worker.call("count", lambda *given: heard.append(given), to=2) == 2
    assert heard == [("counting", 0.0), ("counting", 0.5)]
    assert worker.call("add", a=1, b=2) == 3


def test_errors_of_ours_come_back_as_they_were_raised(worker: Worker) -> None:
    """Class, exit code and message, whatever the constructor takes; the child goes on."""
    with pytest.raises(StateError, match=r"^no room for 3 tokens\.$"):
        worker.call("refuse")
    with pytest.raises(MissingExtraError, match=r"^This needs the extra 'hf'"):
        worker.call("lack")

    assert worker.call("add", a=1, b=1) == 2


def test_a_fault_of_ours_comes_with_the_childs_traceback(worker: Worker) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)llama: Traceback.*KeyError: 'absent'"):
        worker.call("fail")


def test_a_killed_child_is_told_with_the_likely_cause(worker: Worker) -> None:
    """What the system does when memory runs out is SIGKILL."""
    with pytest.raises(ProfileError, match=r"measured llama was ended by SIGKILL\. .*memory"):
        worker.call("die")
    with pytest.raises(ProfileError, match="SIGKILL"):
        worker.call("add", a=1, b=1)


def test_a_crash_is_told_by_its_signal(worker: Worker) -> None:
    with pytest.raises(ProfileError, match="SIGABRT"):
        worker.call("abort")


def test_a_child_that_leaves_is_told_with_its_last_words(worker: Worker) -> None:
    with pytest.raises(ProfileError, match="ended with code 7: the disk is gone"):
        worker.call("leave")


def test_a_module_that_does_not_start_says_why() -> None:
    with (
        Worker("llama", "intaglio.no_such_child") as child,
        pytest.raises(ProfileError, match=r"ended with code 1: .*No module named"),
    ):
        child.call("add")


def test_no_child_outlives_its_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither after its work nor when the parent is interrupted in the middle of it."""
    (tmp_path / "child_of_tests.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("llama", "child_of_tests") as child:
        first = child.pid
        child.call("add", a=1, b=1)
    interrupted = Worker("llama", "child_of_tests")
    with pytest.raises(KeyboardInterrupt), interrupted:
        raise KeyboardInterrupt

    assert gone(first)
    assert gone(interrupted.pid)
