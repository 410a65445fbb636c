"""ONNX's own tests of its operators, exported whole: equal to ONNX Runtime, or refused by name.

    python benchmarks/onnx_nodes.py [--quick] [--json]

Each graph that ONNX Runtime itself runs is exported with `--whole`, passes checked, and its bundle
called with the test's inputs; `--quick` takes each fortieth.  A result that differs, or an error
that is not one of intaglio's, is a fault, and stands in the note.
"""

import logging
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from evidence import Row, run

import intaglio
from intaglio.errors import IntaglioError
from intaglio.runtime import Session

EQUAL, REFUSED, DIFFERENT, CRASHED = "equal", "refused", "different", "crashed"
CLOSE = 1e-4
QUICK = 40
SHOWN = 12


def measure(quick: bool) -> list[Row]:
    """How many graphs of which outcome."""
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    from onnx.backend.test.case.node import collect_testcases

    found: dict[str, list[str]] = defaultdict(list)
    cases = sorted(collect_testcases(None), key=lambda case: case.name)
    for case in cases[:: QUICK if quick else 1]:
        with tempfile.TemporaryDirectory() as folder:
            outcome = _outcome(case, Path(folder))
        if outcome is not None:
            found[outcome[0]].append(f"{case.name} {outcome[1]}".strip())
    wrong = (DIFFERENT, CRASHED)
    return [
        Row(
            name=kind,
            value=len(found[kind]),
            unit="graphs",
            target="0" if kind in wrong else None,
            holds=not found[kind] if kind in wrong else None,
            against="ONNX Runtime",
            note="; ".join(found[kind][:SHOWN]) if kind != EQUAL else "",
        )
        for kind in (EQUAL, REFUSED, DIFFERENT, CRASHED)
    ]


def _outcome(case: Any, folder: Path) -> tuple[str, str] | None:
    """What became of a graph; None of one that ONNX Runtime does not run itself."""
    path, model = folder / "model.onnx", case.model
    try:
        onnx.save(model, path)
        inputs = case.data_sets[0][0]
        feeds = {value.name: array for value, array in zip(model.graph.input, inputs, strict=True)}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        engine = onnxruntime.InferenceSession(path, options)
        wanted = dict(
            zip([each.name for each in engine.get_outputs()], engine.run(None, feeds), strict=True)
        )
    except Exception:  # noqa: BLE001  ONNX Runtime's errors share no base class
        return None
    try:
        intaglio.export(path, folder / "bundle", whole=True, inputs=feeds, check_passes=True)
        found = Session.load(folder / "bundle").step(feeds)
    except IntaglioError as error:
        return REFUSED, f"({type(error).__name__})"
    except Exception as error:  # noqa: BLE001  what is counted here
        return CRASHED, f"({type(error).__name__}: {error})"[:120]
    return (
        (EQUAL, "")
        if all(_agree(found[n], array) for n, array in wanted.items())
        else (DIFFERENT, "")
    )


def _agree(found: Any, wanted: Any) -> bool:
    if found.shape != wanted.shape or not wanted.size:
        return bool(found.shape == wanted.shape)
    wide = wanted.astype(np.float64)
    finite = np.isfinite(wide)
    scale = float(np.abs(wide[finite]).max(initial=1))
    return np.allclose(
        found.astype(np.float64), wide, rtol=CLOSE, atol=CLOSE * scale, equal_nan=True
    )


if __name__ == "__main__":
    run(__doc__, measure)
