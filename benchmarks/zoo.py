"""Causal mixers of every kind, exported as their papers' code has them.

    python benchmarks/zoo.py [--quick] [--only KIND_OR_NAME,...] [--rtx] [--timed]
        [--beside FILE] [--json]

For each module of `zoo_modules/` the largest error of its step engine against PyTorch in float64,
over 1,000 tokens one at a time, all at once and in uneven parts; the note says which operators it
became, and how many values a row carries.  A refusal is a row with its reason; anything else that
stops an export is a crash.  Then the time of a step of one token in turns with that of the same
written by hand, with our operators or as a step cell (`zoo_modules/by_hand.py`), in the time of
the thread that computes.  `--rtx` builds an engine of TensorRT-RTX as well, and verifies it on an
emulated GPU; none of them has run on a GPU.  With `--beside`, rows of mixers that are not measured
now are those of an earlier record; with `--timed`, so is all of those that are but the time of a
step.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from evidence import Row, paired, ratio, run
from torch import Tensor, nn
from zoo_modules import KINDS
from zoo_modules.by_hand import FORMS, Form, Operated, Stepped, difference
from zoo_modules.mixer import Mixer
from zoo_modules.with_cells import Cell

import intaglio
from intaglio.errors import IntaglioError
from intaglio.exporter.export import ExportReport
from intaglio.exporter.proving.parity import ParityReport
from intaglio.operators import BY_TYPE
from intaglio.quiet import quiet
from intaglio.runtime import Session
from intaglio.runtime.trt.engine_build import RECORD

STEPS, QUICK_STEPS, QUICK_EVERY = 1000, 100, 5
LIMIT, TARGET = 1e-4, 0.95
SCANS = ("Scan", "Loop", "Conv")
BUILT = "; engine built"
STEP, ON_GPU = ": a step", ": engine on an emulated GPU"
SLOWEST = 1.1  # of the form by hand
PAIRS, QUICK_PAIRS, WARMUP, FORM_STEPS, GPU_STEPS = 1000, 200, 50, 40, 8


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default="")
    parser.add_argument("--rtx", action="store_true")
    parser.add_argument("--timed", action="store_true")
    parser.add_argument("--beside", type=Path)
    options, sys.argv[1:] = parser.parse_known_args()
    chosen = ["--only", options.only] * bool(options.only) + ["--rtx"] * options.rtx
    chosen += ["--timed"] * options.timed
    chosen += ["--beside", str(options.beside)] * (options.beside is not None)
    only = set(filter(None, options.only.split(",")))
    earlier = [] if options.beside is None else json.loads(options.beside.read_text())["rows"]
    kept = [Row(**row) for row in earlier]
    run(
        __doc__,
        lambda quick: measure(quick, only, kept, rtx=options.rtx, timed=options.timed),
        chosen,
    )


def measure(quick: bool, only: set[str], kept: list[Row], *, rtx: bool, timed: bool) -> list[Row]:
    """The rows of each mixer, measured now or kept, and those that count them."""
    torch.set_num_threads(1)
    mixers = [(kind, mixer) for kind, each in KINDS.items() for mixer in each]
    rows = []
    for kind, mixer in mixers[:: QUICK_EVERY if quick and not only else 1]:
        name = f"{kind}: {mixer.name}"
        if only and not {kind, mixer.name, name} & only:
            rows += [row for row in kept if row.name in (name, name + STEP, name + ON_GPU)]
            continue
        if timed:
            rows += [row for row in kept if row.name in (name, name + ON_GPU)]
        measured = _timed(kind, mixer, quick=quick) if timed else None
        for row in measured or _rows(kind, mixer, quick=quick, rtx=rtx):
            print(f"{row.name}: {row.value:.3g} {row.unit}", file=sys.stderr, flush=True)
            rows.append(row)
    return [*rows, *_counts(rows)]


def _counts(rows: list[Row]) -> Iterator[Row]:
    first = [row for row in rows if not row.name.endswith((STEP, ON_GPU))]
    exported = [row for row in first if row.unit == "error"]
    share = len(exported) / max(len(first), 1)
    wrong = sum(not row.holds for row in exported)
    crashed = sum(row.unit == "crash" for row in rows)
    timed = [row for row in rows if row.name.endswith(STEP)]
    emulated = [row for row in rows if row.name.endswith(ON_GPU)]
    built = sum(row.note.endswith(BUILT) for row in exported)
    if built:
        yield Row(name="engines of TensorRT-RTX", value=built, unit=f"of {len(exported)}")
        verified = sum(bool(row.holds) for row in emulated)
        yield Row(name="engines that are equal on an emulated GPU", value=verified,
                  unit=f"of {built}", target=f"{built}", holds=verified == built)  # fmt: skip
    fast = sum(bool(row.holds) for row in timed)
    yield Row(name=f"steps of at most {SLOWEST} of the form by hand", value=fast,
              unit=f"of {len(timed)}", target=f"{len(timed)}",
              holds=fast == len(timed))  # fmt: skip
    yield Row(name="exported", value=share, unit=f"of {len(first)}",
              target=f">= {TARGET}", holds=share >= TARGET)  # fmt: skip
    yield Row(name="wrong", value=wrong, unit="", target="0", holds=not wrong)
    yield Row(name="crashed", value=crashed, unit="", target="0", holds=not crashed)


def _rows(kind: str, mixer: Mixer, *, quick: bool, rtx: bool) -> Iterator[Row]:
    name = part = f"{kind}: {mixer.name}"
    torch.manual_seed(0)
    module, form = mixer.make().eval(), FORMS[kind][mixer.name]
    options: dict[str, Any] = {**mixer.options, "steps": QUICK_STEPS if quick else STEPS}
    if rtx:
        from trt_engines import EMULATED, emulated

        options |= {"targets": ["ort", "trt"], "flavour": "rtx", "sm": [EMULATED]}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        try:
            with quiet():
                report = intaglio.export(
                    module, out, inputs=mixer.inputs(), axes=mixer.axes, **options
                )
            row = _exported(name, mixer, report, rtx=rtx)
            if isinstance(form, str):
                row = replace(row, note=f"{form}; {row.note}")
            yield row
            if not isinstance(form, str):
                yield _step(name, mixer, module, form, Path(folder), quick=quick)
            if rtx and (out / RECORD).exists():
                part = name + ON_GPU
                with quiet():
                    parity = emulated(out, module, GPU_STEPS)
                yield _emulated(name, parity)
        except IntaglioError as refusal:
            said = str(refusal).partition(" The attempt is kept")[0]  # in a folder that is gone
            yield Row(name=part, value=1, unit="refused", holds=False, note=said)
        except Exception:  # noqa: BLE001  whatever else ends an export
            last = traceback.format_exc(limit=-3)
            yield Row(name=part, value=1, unit="crash", holds=False, note=last)


def _timed(kind: str, mixer: Mixer, *, quick: bool) -> Iterator[Row]:
    """The time of a step alone, if there is a form by hand."""
    torch.manual_seed(0)
    module, form = mixer.make().eval(), FORMS[kind][mixer.name]
    if isinstance(form, str):
        return
    with tempfile.TemporaryDirectory() as folder:
        out, given = Path(folder) / "bundle", mixer.inputs()
        with quiet():
            options = {**mixer.options, "axes": mixer.axes, "verify": False}
            intaglio.export(module, out, inputs=given, **options)
        yield _step(f"{kind}: {mixer.name}", mixer, module, form, Path(folder), quick=quick)


def _emulated(name: str, parity: ParityReport) -> Row:
    """The largest error, against the limit of each output."""
    share = max(row.found.error / row.found.limit for row in parity.rows)
    return Row(name=name + ON_GPU, value=share, unit="of the limit", target="<= 1",
               holds=share <= 1, against=f"PyTorch, {parity.precision}")  # fmt: skip


def _step(
    name: str, mixer: Mixer, module: nn.Module, form: Form, folder: Path, *, quick: bool
) -> Row:
    """One token of one row through both sessions, in turns."""
    x = next(iter(mixer.inputs().values()))
    axes = list(next(iter((mixer.axes or {}).values()), ("batch", "time")))
    axis = axes.index("time")
    error = difference(form, module, x, axis)
    if isinstance(form, Cell):
        start = form.started(module, len(x), x.dtype)
        inputs: dict[str, Any] = {"x": x.select(axis, 0), "h": start}
        by_hand: nn.Module = Stepped(form, module)
        states = {f"h_{n}": f"output_1_{n}" for n in range(len(start))}
    else:
        inputs, by_hand, states = {"x": x}, Operated(form, module), None
    with quiet():
        intaglio.export(
            by_hand.eval(), folder / "by-hand", inputs=inputs, states=states, steps=FORM_STEPS
        )
    ours = _session(folder / "bundle", x.narrow(axis, 0, 1)[:1])
    token = x.select(axis, 0) if isinstance(form, Cell) else x.narrow(axis, 0, 1)
    theirs = _session(folder / "by-hand", token[:1])
    times = paired(
        ours, theirs, QUICK_PAIRS if quick else PAIRS, warmup=WARMUP, clock=time.thread_time
    )
    found = ratio(*times)
    return Row(
        name=name + STEP,
        value=found,
        unit="of the form by hand",
        target=f"at most {SLOWEST}",
        holds=found <= SLOWEST and error <= LIMIT,
        against="a step cell" if isinstance(form, Cell) else "intaglio.ops",
        note=f"the form differs by {error:.1g} in PyTorch",
    )


def _session(bundle: Path, token: Tensor) -> Callable[[], object]:
    session = Session.load(bundle, threads=1)
    given = {session.entry.inputs[0].name: token.numpy()}
    return lambda: session.step(given)


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
