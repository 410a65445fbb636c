"""`intaglio profile`: options, tables, JSON, the page, and what is refused."""

import functools
import json
import sys
from pathlib import Path

import pytest
from command_line import invoke
from typer.testing import Result

from intaglio.runtime.bundle import Bundle
from intaglio.runtime.report_file import read_report

profile = functools.partial(invoke, "profile")
QUICK = ["--context=9,3", "--prompt-length=5", "--threads=1", "--warm-up=0", "--duration=0"]


@pytest.fixture(scope="module")
def ran(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One run with a page, as text."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    options = [*QUICK, "--iterations=3", "--batch=2", "--percentile=50,99.9", "--report", str(out)]
    return profile(bundle, *options), out


def test_tables_tell_latency_memory_and_where_the_time_goes(ran: tuple[Result, Path]) -> None:
    result, out = ran

    assert result.exit_code == 0
    for words in (
        *("prefill 5", "step at 3", "step at 9", "p99.9", "tokens/s", "threads: 1"),
        *("32 bits per weight", "arena of the engine", "process at its peak"),
        *("where the time goes, step at 9", "lm_head", "4 x MatMul"[2:], "between operators"),
        *("GB/s", "Gop/s"),
    ):
        assert words in result.stdout, words
    tables = [line for line in result.stdout.splitlines() if line.startswith("  ")]
    assert max(map(len, tables)) <= 100
    assert f"the page is {out}" in result.stderr


def test_the_page_is_written_and_the_report_kept(ran: tuple[Result, Path], bundle: Path) -> None:
    """The bundle keeps the figures without the page."""
    assert "Where the time goes: bundle" in ran[1].read_text(encoding="utf-8")
    kept = read_report(Bundle.open(bundle))["profile"]
    assert [timing["batch"] for timing in kept["measured"][0]["timings"]] == [2, 2, 2]
    assert {timing["iterations"] for timing in kept["measured"][0]["timings"]} == {3}


def test_json_is_one_object_with_both_bundles(bundle: Path) -> None:
    result = profile(bundle, bundle, *QUICK, "--iterations=2", "--no-ops", "--json", "--quiet")
    found = json.loads(result.stdout)

    assert result.stderr == ""
    assert len(found["measured"]) == 2
    assert {entry["pairs"] for entry in found["ratios"]} == {2}
    assert found["measured"][0]["ops"] == []
    assert found["options"]["contexts"] == [9, 3]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--context=1,x", "is no list of"),
        ("--context=1.5", "is no list of"),
        ("--percentile=p99", "is no list of"),
        ("--context=", "is no list of"),
    ],
)
def test_lists_that_are_none_are_faults_of_usage(bundle: Path, option: str, words: str) -> None:
    result = profile(bundle, option)

    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch=0"], "batch is 0"),
        (["--percentile=101"], "percentile is 101"),
        (["--target=npu"], "cannot run the target 'npu'"),
    ],
)
def test_what_cannot_be_measured_exits_1(bundle: Path, options: list[str], words: str) -> None:
    result = profile(bundle, *options)

    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(
    bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for place, words in (
        (tmp_path, "is a folder. Give the name of a file"),
        (tmp_path / "file/in/x.html", f"{tmp_path / 'file'} is a file, not a folder"),
    ):
        result = profile(bundle, *QUICK, "--report", place)
        assert (result.exit_code, result.stdout) == (1, ""), place
        assert words in result.stderr


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    result = profile(tmp_path / "absent")

    assert result.exit_code == 1
    assert f"{tmp_path / 'absent'} does not exist" in result.stderr


def test_a_page_without_its_extra_is_refused_before_anything_is_measured(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = profile(bundle, "--report", tmp_path / "x.html")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "pip install 'intaglio[report]'" in result.stderr
    assert not (tmp_path / "x.html").exists()
