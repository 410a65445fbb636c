"""Models of whole inputs: equal at five sizes, built for TensorRT, and as fast as plain ONNX.

    python benchmarks/whole.py [--quick] [--json]

Each model of `whole_models.py`, with random weights, is exported as anyone would; the error is the
largest of its five calls at sizes as different as it takes, in units of its limit.  An engine of
TensorRT-RTX is built from it, or the reason stands in the note; it has not run, where there is no
GPU.  Latency is on one thread, at the sizes of the example: that of the graph in turns with what
`torch.onnx.export` writes (which optimises as it likes, with the same axes free), both in ONNX
Runtime alone; and that of a session's call, which checks and copies, as microseconds more, and
beside PyTorch eager.  Where `torch.onnx.export` refuses a model there is no such peer.
"""

import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from evidence import Row, paired, ratio, run
from torch import Tensor, nn
from torch.export import Dim
from whole_models import Case, Cases

import intaglio
from intaglio.errors import IntaglioError
from intaglio.exporter.export import ExportReport
from intaglio.runtime import Session
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.trt.engine_build import RECORD

MOST = 1.02  # of plain ONNX's time
CLOCK = time.thread_time  # all run in one thread, and others' work is left out
FOLDER = "session.model_external_initializers_file_folder_path"
QUICK = ("u-net", "tabular", "messages", "encoder")


def measure(quick: bool) -> list[Row]:
    """Rows of all models, and how many of them meet what they should."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rows: list[Row] = []
    for name, case in Cases().all().items():
        if not quick or name in QUICK:
            print(name, file=sys.stderr, flush=True)
            try:
                rows += _model(name, case, 100 if quick else 400)
            except IntaglioError as error:
                rows.append(Row(name=name, value=0, unit="exported", holds=False, note=str(error)))
    return rows


def _model(name: str, case: Case, pairs: int) -> list[Row]:
    torch.manual_seed(1)
    module = case.build().eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = Path(folder) / "bundle"
        report, why = _exported(module, case, out)
        session = Session.load(out, threads=1)
        rows = [_parity(name, report), _engine(name, out, why)]
        try:
            plain = _plain(module, case, report, Path(folder) / "plain.onnx")
        except Exception as error:  # noqa: BLE001  whatever the peer refuses a model with
            refused = str(error).partition("## Exception summary")[2] or str(error)
            note = f"torch.onnx.export refuses it: {' '.join(refused.split())[:120]}"
            rows.append(Row(name=f"{name}: plain ONNX", value=0, unit="graphs", note=note))
        else:
            rows += _against_plain(name, case.inputs, (session, _opened(out), plain), pairs)
        return [*rows, _against_eager(name, module, case.inputs, session, pairs)]


def _exported(module: nn.Module, case: Case, out: Path) -> tuple[ExportReport, str]:
    """A bundle with an engine, or without one and the reason."""
    given: dict[str, Any] = {"inputs": case.inputs, "axes": case.axes}
    try:
        return intaglio.export(
            module, out, targets=["ort", "trt"], flavour="rtx", sm=[89], **given
        ), ""
    except IntaglioError as error:
        return intaglio.export(module, out, force=True, **given), str(error)


def _parity(name: str, report: ExportReport) -> Row:
    assert report.parity is not None
    worst = report.parity.worst.found
    return Row(
        name=f"{name}: error",
        value=worst.error / worst.limit,
        unit="of the limit",
        target="<= 1",
        holds=report.parity.passed and report.manifest.main.whole,
        against="PyTorch, float64",
        note=f"{report.parity.steps} sizes: {'; '.join(report.parity.splits)}",
    )


def _engine(name: str, out: Path, why: str) -> Row:
    built = (out / RECORD).exists()
    return Row(name=f"{name}: engine of TensorRT-RTX", value=float(built), unit="built", note=why)


def _opened(bundle: Path) -> onnxruntime.InferenceSession:
    """The graph of a bundle, as ONNX Runtime alone opens it."""
    opened = Bundle.open(bundle)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry(FOLDER, str(bundle))
    graph = opened.read(opened.manifest.main.targets["ort"].path)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _plain(
    module: nn.Module, case: Case, report: ExportReport, path: Path
) -> onnxruntime.InferenceSession:
    """What `torch.onnx.export` and ONNX Runtime make of the module, with the same axes free."""
    free = {
        spec.name: {i: Dim.DYNAMIC for i, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in report.manifest.main.inputs
    }
    torch.onnx.export(
        module, (), str(path), kwargs=dict(case.inputs), dynamo=True, dynamic_shapes=free,
        verbose=False,
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _against_plain(
    name: str,
    inputs: Mapping[str, Tensor],
    engines: tuple[Session, onnxruntime.InferenceSession, onnxruntime.InferenceSession],
    pairs: int,
) -> list[Row]:
    session, graph, plain = engines
    feeds = _feeds(inputs)
    given = {
        value.name: feeds.get(value.name, next(iter(feeds.values())))
        for value in plain.get_inputs()
    }
    own, theirs = paired(
        lambda: graph.run(None, feeds), lambda: plain.run(None, given), pairs, clock=CLOCK
    )
    found = ratio(own, theirs)
    step, run_alone = paired(
        lambda: session.step(feeds), lambda: plain.run(None, given), pairs, clock=CLOCK
    )
    around = 1e6 * statistics.median(a - b for a, b in zip(step, run_alone, strict=True))
    return [
        Row(
            name=f"{name}: latency of the graph",
            value=found,
            unit="of plain",
            target=f"<= {MOST}",
            holds=found <= MOST,
            against="torch.onnx + ONNX Runtime",
            note=f"{1e6 * statistics.median(theirs):.0f} us; a session's call {around:+.0f} us",
        )
    ]


def _against_eager(
    name: str, module: nn.Module, inputs: Mapping[str, Tensor], session: Session, pairs: int
) -> Row:
    feeds = _feeds(inputs)
    with torch.inference_mode():
        own, eager = paired(
            lambda: session.step(feeds), lambda: module(**inputs), pairs, clock=CLOCK
        )
    return Row(
        name=f"{name}: latency of a session's call",
        value=ratio(own, eager),
        unit="of eager",
        against="PyTorch eager",
    )


def _feeds(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.numpy() for name, value in inputs.items()}


if __name__ == "__main__":
    run(__doc__, measure)
