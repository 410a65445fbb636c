"""Causal mixers of every kind, exported as their papers' code has them.

    python benchmarks/zoo.py [--quick] [--only KIND_OR_NAME,...] [--rtx] [--json]

For each module of `zoo_modules/` the largest error of its step engine against PyTorch in float64,
over 1,000 tokens one at a time, all at once and in uneven parts; the note says which operators it
became, and how many values a row carries.  A refusal is a row with its reason; anything else that
stops an export is a crash.  `--rtx` builds an engine of TensorRT-RTX as well, and counts them; none
of them has run, where there is no GPU.
"""

import argparse
import os
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import torch
from evidence import Row, run
from zoo_modules import KINDS
from zoo_modules.mixer import Mixer

import intaglio
from intaglio.errors import IntaglioError
from intaglio.exporter.export import ExportReport
from intaglio.operators import BY_TYPE
from intaglio.quiet import quiet
from intaglio.runtime.trt.engine_build import RECORD

STEPS, QUICK_STEPS, QUICK_EVERY = 1000, 100, 5
LIMIT, TARGET = 1e-4, 0.95
SCANS = ("Scan", "Loop", "Conv")
BUILT = "; engine built"


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default="")
    parser.add_argument("--rtx", action="store_true")
    options, sys.argv[1:] = parser.parse_known_args()
    chosen = ["--only", options.only] * bool(options.only) + ["--rtx"] * options.rtx
    only = set(filter(None, options.only.split(",")))
    run(__doc__, lambda quick: measure(quick, only, rtx=options.rtx), chosen)


def measure(quick: bool, only: set[str], *, rtx: bool) -> list[Row]:
    """A row for each mixer, and three that count them."""
    torch.set_num_threads(1)
    mixers = [
        (kind, mixer)
        for kind, each in KINDS.items()
        for mixer in each
        if not only or {kind, mixer.name} & only
    ]
    rows = []
    for kind, mixer in mixers[:: QUICK_EVERY if quick and not only else 1]:
        rows.append(_row(kind, mixer, QUICK_STEPS if quick else STEPS, rtx=rtx))
        print(f"{rows[-1].name}: {rows[-1].value:.2g} {rows[-1].unit}", file=sys.stderr, flush=True)
    exported = [row for row in rows if row.unit == "error"]
    share = len(exported) / len(rows)
    wrong = sum(not row.holds for row in exported)
    crashed = sum(row.unit == "crash" for row in rows)
    built = sum(row.note.endswith(BUILT) for row in exported)
    engines = Row(name="engines of TensorRT-RTX", value=built, unit=f"of {len(exported)}")
    return [
        *rows,
        *[engines] * rtx,
        Row(
            name="exported",
            value=share,
            unit=f"of {len(rows)}",
            target=f">= {TARGET}",
            holds=share >= TARGET,
        ),
        Row(name="wrong", value=wrong, unit="", target="0", holds=not wrong),
        Row(name="crashed", value=crashed, unit="", target="0", holds=not crashed),
    ]


def _row(kind: str, mixer: Mixer, steps: int, *, rtx: bool) -> Row:
    name = f"{kind}: {mixer.name}"
    torch.manual_seed(0)
    engines: dict[str, Any] = {"targets": ["ort", "trt"], "flavour": "rtx"} if rtx else {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            with quiet():
                report = intaglio.export(
                    mixer.make().eval(),
                    Path(folder) / "bundle",
                    inputs=mixer.inputs(),
                    axes=mixer.axes,
                    steps=steps,
                    **engines,
                    **mixer.options,
                )
            return _exported(name, mixer, report, rtx=rtx)
        except IntaglioError as refusal:
            said = str(refusal).partition(" The attempt is kept")[0]  # in a folder that is gone
            return Row(name=name, value=1, unit="refused", holds=False, note=said)
        except Exception:  # noqa: BLE001  whatever else ends an export
            last = traceback.format_exc(limit=-3)
            return Row(name=name, value=1, unit="crash", holds=False, note=last)


def _exported(name: str, mixer: Mixer, report: ExportReport, *, rtx: bool) -> Row:
    assert report.parity is not None
    error = max(row.found.error for row in report.parity.rows)
    states = report.manifest.main.states
    grown = [spec.input for spec in states if any(isinstance(dim, str) for dim in spec.shape[1:])]
    carried = sum(spec.nbytes(1, 0) for spec in states) // 4
    graph = onnx.load(os.fspath(report.out / "model.onnx"), load_external_data=False).graph
    kinds = Counter(
        node.op_type
        for node in graph.node
        if node.op_type in SCANS or f"{node.domain}::{node.op_type}".removeprefix("::") in BY_TYPE
    )
    became = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"
    note = f"{became}; {carried} values carried"
    if report.manifest.main.whole:
        note = f"whole sequences; {note}"
    if grown:
        note += f"; grows: {', '.join(grown)}"
    if rtx:
        lacking = " ".join(each for each in report.notes if "TensorRT" in each)
        note += BUILT if (report.out / RECORD).exists() else f"; no engine: {lacking}"
    return Row(
        name=name,
        value=error,
        unit="error",
        target=f"at most {LIMIT:g}" + ", constant states" * mixer.constant,
        holds=error <= LIMIT and not (mixer.constant and grown) and not report.manifest.main.whole,
        against="PyTorch, float64",
        note=note,
    )


if __name__ == "__main__":
    main()
