"""Engines that were really built, on an emulated GPU: their plugins' kernels, step by step.

All that runs on a GPU but TensorRT's own layers, which ONNX's reference computes: the session, its
states on the device, the plan of each node, its kernels as PTX.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from emulator.device import Gpu
from emulator.engine import Graph, install
from hybrid import SM

from intaglio.exporter.export import ExportReport
from intaglio.runtime import user_cache
from intaglio.runtime.session import Session
from intaglio.runtime.trt.engine_build import TARGET

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("triton")

PROMPT, STEPS = 40, 5  # tokens: two chunks of a linear attention, and a captured graph


@pytest.fixture(autouse=True)
def _kernels_are_kept(kernel_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_cache, "folder", lambda kind: kernel_cache / kind)


@pytest.fixture(scope="module")
def few_bits(export_hybrid: Callable[..., ExportReport]) -> ExportReport:
    """An engine with products of 2 bits, in fp16."""
    return export_hybrid(passes=["rtn:bits=2,group=16"], dtype="fp16")


def compare(
    bundle: Path, cache: Path, patch: pytest.MonkeyPatch, limit: float
) -> tuple[Graph, Gpu]:
    """Prefill and step a session of the engine, against one of ONNX Runtime."""
    gpu = Gpu(SM)
    graph = install(bundle, gpu, cache / "kernels", patch)
    engine, reference = Session.load(bundle, TARGET), Session.load(bundle, "ort")
    ids = np.random.default_rng(0).integers(0, 32, (1, PROMPT + STEPS))
    for window in (slice(PROMPT), *(slice(i, i + 1) for i in range(PROMPT, PROMPT + STEPS))):
        step = {"input_ids": ids[:, window]}
        got, wanted = engine.step(step)["logits"], reference.step(step)["logits"]
        assert np.abs(got - wanted).max() <= limit * np.abs(wanted).max()
    return graph, gpu


def test_an_engine_computes_what_onnx_runtime_does(
    hybrid_engine: ExportReport, kernel_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolutions and a recurrence, in chunks and by tokens, launch by launch and captured."""
    graph, gpu = compare(hybrid_engine.out, kernel_cache, monkeypatch, 1e-5)

    calls = 1 + STEPS
    assert graph.launched == {"CausalConvWithState": 3 * calls, "LinearAttention": calls}
    assert gpu.launched == STEPS - 2


def test_products_of_2_bits_do_too(
    few_bits: ExportReport, kernel_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their weights arranged for the kernels, their activations in fp16."""
    graph, _ = compare(few_bits.out, kernel_cache, monkeypatch, 2e-2)

    assert graph.launched["AffineLowBitMatMul"] == 17 * (1 + STEPS)
