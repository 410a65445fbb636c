"""report.json keeps one section for each command, and never stands in a command's way."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from killed import after_calls

from intaglio import __version__
from intaglio.errors import BundleError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.report_file import keep, read_report


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Bundle:
    return Bundle.open(make_bundle("conv"))


def test_each_section_replaces_its_own_last_one(bundle: Bundle) -> None:
    keep(bundle, "verify", {"passed": False})
    keep(bundle, "profile", {"measured": []})
    keep(bundle, "verify", {"passed": True})
    found = json.loads((bundle.root / "report.json").read_text())

    assert found == read_report(bundle)
    assert set(found) == {"report_version", "verify", "profile"}
    assert (found["verify"]["passed"], found["verify"]["intaglio"]) == (True, __version__)
    assert sorted(path.name for path in bundle.root.iterdir()) == [
        "manifest.json",
        "ort",
        "report.json",
    ]


@pytest.mark.parametrize("content", ["", "[]", '{"report_version": 99, "verify": {}}', "\udcff"])
def test_a_report_that_cannot_be_read_is_begun_anew(bundle: Bundle, content: str) -> None:
    path = bundle.root / "report.json"
    path.write_text(content, errors="surrogateescape")

    assert read_report(bundle) == {}
    assert keep(bundle, "verify", {}) is None
    assert set(read_report(bundle)) == {"report_version", "verify"}


def test_a_report_that_cannot_be_written_is_told_and_no_more(bundle: Bundle) -> None:
    (bundle.root / "report.json").mkdir()

    assert "report.json cannot be written" in str(keep(bundle, "verify", {}))


def test_a_report_that_leads_out_of_the_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.root / "report.json").symlink_to(tmp_path / "elsewhere.json")

    with pytest.raises(BundleError, match="leaves the bundle"):
        keep(bundle, "verify", {})


def test_a_report_is_the_old_or_the_new_one_when_its_writer_is_killed(bundle: Bundle) -> None:
    def write(speed: int) -> None:
        keep(bundle, "profile", {"speed": speed})

    seen = {
        read_report(bundle)["profile"]["speed"]
        for _ in after_calls(lambda: write(1), lambda: write(2), step=10)
    }
    assert seen == {1, 2}
    write(3)
    assert not [*bundle.root.glob(".*")]
