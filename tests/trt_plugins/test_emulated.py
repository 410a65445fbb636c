"""What plugins carry computes their operators: compiled kernels, on an emulated GPU.

Triton's interpreter, in which other tests run kernels, knows neither layouts nor barriers nor
assembly.  `benchmarks/emulated_kernels.py` takes every compute capability and published sizes.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from emulator.device import STREAM, Gpu
from emulator.plugins import compared, draw, errors, job_of, kernels_of, poisoned, taken, ways_of
from emulator.requests import wide
from torch import Tensor

from intaglio.ops.op import Sample
from intaglio.runtime.trt.generic_plugin import register, workspace
from intaglio.runtime.trt.kernels import NodeKernels
from intaglio.trt_plugins import NAMES, find
from intaglio.trt_plugins.ahead import Job, compile_all
from intaglio.trt_plugins.launch_torch import request_of
from intaglio.trt_plugins.plugin import Plugin, Request

HALF, SINGLE = torch.float16, torch.float32
AMPERE = 80


def check(plugin: Plugin, sample: Sample, kernels: NodeKernels, gpu: Gpu) -> None:
    """Every way equals the operator in float64, whatever the shapes it is meant for."""
    limit = plugin.tolerance[str(dtype_of(sample)).removeprefix("torch.")]
    for way in ways_of(kernels):
        found = errors(plugin, sample, way, gpu)
        assert all(error <= limit for error in found), (plugin.name, found)


def dtype_of(sample: Sample) -> torch.dtype:
    """Of the activations."""
    return next(x.dtype for x in sample.values() if isinstance(x, Tensor))


@pytest.mark.parametrize("dtype", [HALF, SINGLE])
def test_the_samples_of_every_operator(dtype: torch.dtype, kernel_cache: Path) -> None:
    """Every attribute, and what may be absent."""
    cases = [(find(name), x) for name in NAMES for x in taken(find(name), dtype, AMPERE)]
    jobs = [job_of(plugin, sample, AMPERE) for plugin, sample in cases]
    compiled = compile_all(jobs, kept=kernel_cache, workers=1)
    for (plugin, sample), made in zip(cases, compiled, strict=True):
        check(plugin, sample, kernels_of(plugin, made, AMPERE), Gpu(AMPERE))


@pytest.mark.parametrize(
    ("sm", "first_wins"),
    [(75, False), (AMPERE, True), (90, False), (100, False)],
)
def test_every_generation(sm: int, first_wins: bool, kernel_cache: Path) -> None:
    """With each one's tensor cores, and none; whoever wins where several write one value."""
    for plugin, request, kernels in compiled(NAMES, sm, kernel_cache):
        sample = draw(request, batch=2, time=40)
        check(plugin, sample, kernels, Gpu(sm, first_wins=first_wins))


def test_a_step_may_write_its_state_where_it_was(kernel_cache: Path) -> None:
    """No thread writes what another still reads, of its block or of others."""
    recurrent = [name for name in NAMES if "past_state" in find(name).inputs]
    for plugin, request, kernels in compiled(recurrent, AMPERE, kernel_cache):
        sample, state = draw(request, batch=2, time=1), plugin.inputs.index("past_state")
        found = errors(plugin, sample, kernels, Gpu(AMPERE), in_place={1: state})
        assert all(error <= plugin.tolerance["float16"] for error in found), (plugin.name, found)


def compiled(
    names: Sequence[str], sm: int, kept: Path
) -> Iterator[tuple[Plugin, Request, NodeKernels]]:
    """Kernels for the wide shapes of these operators."""
    requests = {name: wide(name, sm) for name in names}
    jobs = [Job(plugin=name, request=request) for name, request in requests.items()]
    for job, made in zip(jobs, compile_all(jobs, kept=kept, workers=1), strict=True):
        plugin = find(job.plugin)
        yield plugin, job.request, kernels_of(plugin, made, sm)


def test_enqueue_computes_the_operator(kernel_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that NVIDIA's bindings read from an engine is given addresses and a stream."""
    trt = pytest.importorskip("tensorrt_rtx")
    for plugin, request, kernels in compiled(NAMES, AMPERE, kernel_cache):
        gpu = Gpu(AMPERE)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", gpu)
        (creator,) = register(trt, {"node": kernels}, [kernels.op])
        none, phase = trt.PluginFieldCollection([]), trt.TensorRTPhase
        built = creator.create_plugin("node", none, phase.BUILD)
        fields = built.get_fields_to_serialize()
        made = creator.create_plugin("of an engine", fields, phase.RUNTIME).attach_to_context(None)
        sample = draw(request, batch=2, time=3)
        _, arguments = request_of(plugin, sample, AMPERE)
        shapes = [None if x is None else tuple(x.shape) for x in arguments]
        present = [x for x in arguments if x is not None]
        outputs = poisoned(kernels.plan, shapes)
        to = [gpu.put(x) for x in outputs]
        scratch = gpu.put(torch.empty(workspace(kernels, shapes), dtype=torch.uint8))
        described = [SimpleNamespace(dims=tuple(x.shape)) for x in present]
        given = [gpu.put(x) for x in present]

        assert made.enqueue(described, [], given, to, scratch, STREAM) == 0
        got = [gpu.get(at, x) for at, x in zip(to, outputs, strict=True)]
        assert max(compared(plugin, sample, got)) <= plugin.tolerance["float16"], plugin.name
