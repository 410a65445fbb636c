"""A limit of parity is a number from 0, which is found before anything is done."""

from pathlib import Path
from typing import Any

import pytest

from intaglio.errors import OptionError
from intaglio.exporter.export import export
from intaglio.exporter.options.tolerance import check_tolerance

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("limit", [NAN, INF, 10**400, -1e-3, "much", True, None, [1.0]])
def test_what_is_no_limit_is_refused_before_the_export(tmp_path: Path, limit: Any) -> None:
    """The source is not there: that would be found next."""
    with pytest.raises(OptionError, match=r"tolerance of 'logits' is .*; give a number from 0"):
        export(tmp_path / "absent.pt", tmp_path / "out", tolerance={"logits": limit})


def test_names_are_held_to_those_there_are() -> None:
    check_tolerance({"a": 0, "b": 1e-3, "c": 1e9})
    check_tolerance({"a": 0}, ["a"])
    with pytest.raises(OptionError, match="no output or state 'b' to give a tolerance"):
        check_tolerance({"b": 0}, ["a"])
