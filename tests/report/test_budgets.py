"""The page of a search says what was found, and runs nothing."""

from pathlib import Path

import pytest

from intaglio.report.budgets import write_page


@pytest.mark.parametrize(("budget", "unit"), [("3bits", "bits a weight"), ("2MB", "bytes of the"),
                                              ("1.5ms", "milliseconds of a step")])  # fmt: skip
def test_it_shows_losses_by_what_is_counted(budget: str, unit: str, tmp_path: Path) -> None:
    timed = {"ms": 1.125} if "ms" in budget else {}
    row = {"bits": 2.5, "bytes": 12345, "loss": 1.25, **timed}
    found = {
        "budget": budget,
        "bits": {"<layer>": 3},
        "taken": row,
        "uniform": [row, {**row, "loss": 1.5}],
        "pareto": [row],
    }
    write_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()

    assert unit in page
    assert "12,345" in page
    assert ("1.125" in page.partition("The best of each size")[2]) == bool(timed)
    assert "&lt;layer&gt;" in page
    assert "<script" not in page
