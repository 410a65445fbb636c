"""Kernels of a plugin that were never compiled, and engines on a GPU that is not there."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from device import Setting, TensorRT
from engines import add_engine
from gpu import Driver

from intaglio.runtime import user_cache
from intaglio.runtime.launch import (
    Buffer,
    Launch,
    LaunchPlan,
    Output,
    Variant,
    ceil_div,
    dim,
    less,
)
from intaglio.runtime.trt.engine_build import GRAPH
from intaglio.runtime.trt.kernels import NodeKernels


def _plan(shared: int) -> LaunchPlan:
    def launch(name: str, first: Buffer) -> Launch:
        return Launch(
            code=f"{name}_0",
            entry=name,
            arguments=(first, Buffer("input", 3), dim(0, 1), Buffer("output", 1)),
            grid=(ceil_div(dim(0, 1), 32), 4, dim(0, 0)),
            threads=128,
            shared=shared,
        )

    return LaunchPlan(
        inputs=("float16", "float16", "float16", "float32"),
        outputs=(
            Output(dtype="float16", shape=(dim(0, 0), dim(0, 1), 64)),
            Output(dtype="float32", shape=(dim(0, 0), 4, 16, 16)),
        ),
        variants=(
            Variant(when=less(dim(0, 1), 17), launches=(launch("walk", Buffer("input", 0)),)),
            Variant(
                when=None,
                launches=(
                    launch("within", Buffer("scratch", 1)),
                    launch("across", Buffer("scratch", 0)),
                ),
                scratch=(dim(0, 1) * 4, dim(0, 0) * 100),
            ),
        ),
    )


@pytest.fixture
def make_kernels() -> Callable[..., NodeKernels]:
    """Kernels for two GPUs, of which one needs more shared memory than is free for all."""

    def make(op: str = "LinearAttention") -> NodeKernels:
        plans = {80: _plan(1024), 90: _plan(100_000)}
        names = ("walk_0", "within_0", "across_0")
        return NodeKernels(
            op=op,
            plans=plans,
            code={f"{sm}/{name}": f"{name} for {sm}".encode() for sm in plans for name in names},
        )

    return make


@pytest.fixture
def make(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Setting]]:
    """Bundles with engines, and the stand-ins in place of library and driver."""
    monkeypatch.setattr(user_cache, "folder", lambda kind: tmp_path / "cache" / kind)
    real = pytest.importorskip("tensorrt_rtx")

    def made(
        *layouts: str,
        kernels: dict[str, Any] | None = None,
        flavour: str = "rtx",
        **options: Any,
    ) -> Setting:
        root = make_bundle(*layouts, **options)
        built = add_engine(root, real.__version__, kernels, flavour)
        gpu = Driver()
        graph = onnxruntime.InferenceSession((root / GRAPH).read_bytes())
        trt = TensorRT(real, gpu, graph, built.profiles)
        trt.install(monkeypatch)
        return Setting(root, trt, gpu)

    yield made
    gc.collect()
