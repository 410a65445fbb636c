"""What a processor reaches: measured once by graphs that compute what they say, and kept."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from intaglio.runtime import machine
from intaglio.runtime.ort import ort_ceilings as ceilings
from intaglio.runtime.work import NodeWork


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and little to measure on a machine that does nothing else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in {"SIZE": 64, "ROWS": 4, "LEAST": 1 << 16, "TIMES": 0, "SECONDS": 0}.items():
        monkeypatch.setattr(ceilings, name, value)
    monkeypatch.setattr(machine, "load_average", lambda: [0.0, 0.0, 0.0])


def test_ceilings_are_measured_once_for_each_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ceilings.of(1)
    ceilings.of(2)

    assert len([*(tmp_path / "intaglio/ceilings").iterdir()]) == 2
    assert found.bytes > 0
    assert set(found.operations) == {"float32", "int8"}
    monkeypatch.setattr(ceilings, "_measure", None)
    assert ceilings.of(1) == found


def test_a_busy_machine_measures_for_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "load_average", lambda: [99.0, 0.0, 0.0])
    ceilings.of(1)

    assert not (tmp_path / "intaglio").exists()


def test_what_is_damaged_is_measured_again(tmp_path: Path) -> None:
    ceilings.of(1)
    (kept,) = (tmp_path / "intaglio/ceilings").iterdir()
    for content in ("{", "[]", '{"bytes": 0, "operations": {}, "device": ""}', '{"bytes": 1}'):
        kept.write_text(content)
        assert ceilings.of(1).bytes > 0


def test_the_graphs_compute_what_they_say() -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    made = onnx.load_from_string(ceilings.model("MatMul", {"w": weight}))
    found: Any = ReferenceEvaluator(made).run(None, {"x": np.eye(3, dtype=np.float32)})

    assert np.array_equal(found[0], weight)


def test_a_row_is_judged_by_what_it_computes_in() -> None:
    found = ceilings.of(1)
    products = NodeWork(1, 1000, "int8")

    assert found.least(products) == pytest.approx(1e6 / found.operations["int8"])
    assert found.least(NodeWork(1, 1000, "bfloat16")) == pytest.approx(
        1e6 / max(found.operations.values())
    )
    assert "GB/s of memory" in str(found)
    assert "in products of int8" in str(found)
