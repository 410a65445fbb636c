"""What plugins carry computes their operators: compiled kernels, on an emulated GPU.

Triton's interpreter, in which other tests run kernels, knows neither layouts nor barriers nor
assembly.  `benchmarks/emulated_kernels.py` takes every compute capability and published sizes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from emulator.device import STREAM, Gpu
from emulator.plugins import compared, draw, errors, job_of, kernels_of, poisoned, taken, ways_of
from torch import Tensor

from intaglio.ops.op import Sample
from intaglio.runtime.trt.kernels import Kernels
from intaglio.runtime.trt.plugin import register, workspace
from intaglio.trt_plugins import NAMES, find
from intaglio.trt_plugins.ahead import compile_all
from intaglio.trt_plugins.plugin import Input, Plugin, Request
from intaglio.trt_plugins.run import request_of

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
AMPERE = 80


def given(dtype: str = "float16", **shapes: tuple[int | None, ...]) -> dict[str, Input]:
    """Inputs by their shapes; states and what is not a token's are in fp32."""
    fixed = ("past_state", "A", "W", "h")
    return {
        name: Input("float32" if name in fixed else dtype, shape) for name, shape in shapes.items()
    }


# Larger than the samples of the operators: several warps and blocks, tiles that do not fit.
WIDE: dict[str, tuple[dict[str, Any], dict[str, Input]]] = {
    "affine_low_bit_mat_mul": (
        {"K": 300, "N": 140, "bits": 2, "group": 64},
        given(input=(None, None, 300), words=(140, 3, 8), scale=(140, 6), offset=(140, 6)),
    ),
    "causal_conv_with_state": (
        {"activation": "silu"},
        given(input=(None, 200, None), weight=(200, 1, 4), past_state=(None, 200, 3)),
    ),
    "diagonal_ssm": (
        {"discretization": "mamba", "lti": 0},
        given(
            input=(None, None, 100),
            A=(100, 16),
            B=(None, None, 16),
            C=(None, None, 16),
            delta=(None, None, 100),
            past_state=(None, 100, 16),
        ),
    ),
    "linear_attention": (
        {"update_rule": "gated_delta", "q_num_heads": 4, "kv_num_heads": 2},
        given(
            query=(None, None, 160),
            key=(None, None, 80),
            value=(None, None, 100),
            past_state=(None, 2, 40, 50),
            decay=(None, None, 2),
            beta=(None, None, 2),
        ),
    ),
    "piecewise_linear_rnn": (
        {"num_relu": 20},
        {
            **given(drive=(None, None, 127), A=(127,), W=(127, 127), h=(127,)),
            **given(force=(None, None, 5), past_state=(None, 127)),
            "force_mask": Input("bool", (None, None)),
        },
    ),
}


def wide(name: str, sm: int, time: int) -> Sample:
    """Arguments of the shapes above."""
    attributes, inputs = WIDE[name]
    request = Request(attributes=attributes, inputs=inputs, sm=sm)
    return draw(request, batch=2, time=time)


def compiled(plugin: Plugin, samples: Sequence[Sample], sm: int, kept: Path) -> list[Kernels]:
    """Kernels for each sample."""
    jobs = [job_of(plugin, sample, sm) for sample in samples]
    return [kernels_of(plugin, made, sm) for made in compile_all(jobs, kept=kept, workers=1)]


def check(plugin: Plugin, samples: Sequence[Sample], gpus: Sequence[Gpu], kept: Path) -> None:
    """Every way equals the operator in float64, whatever the shapes it is meant for."""
    assert samples
    for sample, kernels in zip(
        samples, compiled(plugin, samples, gpus[0].capability, kept), strict=True
    ):
        limit = plugin.tolerance[str(dtype_of(sample)).removeprefix("torch.")]
        for way in ways_of(kernels):
            for gpu in gpus:
                found = errors(plugin, sample, way, gpu)
                assert all(error <= limit for error in found), found


def dtype_of(sample: Sample) -> torch.dtype:
    """Of the activations."""
    return next(x.dtype for x in sample.values() if isinstance(x, Tensor))


@pytest.mark.parametrize("dtype", [HALF, BRAIN, SINGLE])
@pytest.mark.parametrize("name", NAMES)
def test_the_samples_of_every_operator(name: str, dtype: torch.dtype, kernel_cache: Path) -> None:
    """Every attribute, and what may be absent."""
    plugin = find(name)
    check(plugin, taken(plugin, dtype, AMPERE), [Gpu(AMPERE)], kernel_cache)


@pytest.mark.parametrize("sm", [75, AMPERE, 90, 100, 120])
@pytest.mark.parametrize("name", NAMES)
def test_every_generation(name: str, sm: int, kernel_cache: Path) -> None:
    """With each one's tensor cores, and none; whoever wins where several write one value."""
    gpus = [Gpu(sm), Gpu(sm, first_wins=True)]
    check(find(name), [wide(name, sm, time=70)], gpus, kernel_cache)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "affine_low_bit_mat_mul"])
def test_a_step_may_write_its_state_where_it_was(name: str, kernel_cache: Path) -> None:
    """No thread writes what another still reads, of its block or of others."""
    plugin = find(name)
    sample = wide(name, AMPERE, time=1)
    (kernels,) = compiled(plugin, [sample], AMPERE, kernel_cache)
    state = plugin.inputs.index("past_state")
    found = errors(plugin, sample, kernels, Gpu(AMPERE), in_place={1: state})
    assert all(error <= plugin.tolerance["float16"] for error in found), found


@pytest.mark.parametrize("name", NAMES)
def test_enqueue_computes_the_operator(
    name: str, kernel_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin that NVIDIA's bindings read from an engine is given addresses and a stream."""
    trt = pytest.importorskip("tensorrt_rtx")
    plugin, gpu = find(name), Gpu(AMPERE)
    (sample, *_) = taken(plugin, HALF, AMPERE)
    (kernels,) = compiled(plugin, [sample], AMPERE, kernel_cache)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", gpu)
    (creator,) = register(trt, {"node": kernels}, [kernels.op])
    none, phase = trt.PluginFieldCollection([]), trt.TensorRTPhase
    built = creator.create_plugin("node", none, phase.BUILD)
    fields = built.get_fields_to_serialize()
    made = creator.create_plugin("in an engine", fields, phase.RUNTIME).attach_to_context(None)
    _, inputs = request_of(plugin, sample, AMPERE)
    shapes = [None if x is None else tuple(x.shape) for x in inputs]
    present = [x for x in inputs if x is not None]
    outputs = poisoned(kernels.plan, shapes)
    to = [gpu.put(x) for x in outputs]
    scratch = gpu.put(torch.empty(workspace(kernels, shapes), dtype=torch.uint8))
    described = [SimpleNamespace(dims=tuple(x.shape)) for x in present]

    assert made.enqueue(described, [], [gpu.put(x) for x in present], to, scratch, STREAM) == 0
    got = [gpu.get(at, x) for at, x in zip(to, outputs, strict=True)]
    assert max(compared(plugin, sample, got)) <= plugin.tolerance["float16"]
