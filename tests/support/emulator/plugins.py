"""What a plugin computes by its compiled kernels, beside its operator in float64."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from intaglio.errors import UnsupportedError
from intaglio.ops._low_bit_packing import groups_of, pack_codes
from intaglio.ops.op import Sample
from intaglio.runtime.launch import LaunchPlan, evaluate
from intaglio.runtime.trt.generic_plugin import workspace
from intaglio.runtime.trt.kernels import NodeKernels
from intaglio.runtime.trt.launcher import Launcher
from intaglio.trt_plugins.ahead import CompiledPlan, Job
from intaglio.trt_plugins.launch_torch import error_of, request_of
from intaglio.trt_plugins.plugin import Plugin, Request

from .device import STREAM, Gpu


def taken(plugin: Plugin, dtype: torch.dtype, sm: int) -> list[Sample]:
    """The samples of an operator that there are kernels for."""
    found = []
    for sample in plugin.op.samples(dtype):
        try:
            plugin.kernels(request_of(plugin, sample, sm)[0])
        except UnsupportedError:
            continue
        found.append(sample)
    return found


def job_of(plugin: Plugin, sample: Sample, sm: int) -> Job:
    """What is to be compiled for a sample."""
    return Job(plugin=plugin.name, request=request_of(plugin, sample, sm)[0])


def draw(request: Request, *, batch: int, time: int) -> Sample:
    """Arguments of an operator, random but of a kind that models have, for a request's shapes."""
    generator = torch.Generator().manual_seed(0)
    attributes, known = request.attributes, request.inputs
    sample: Sample = dict(attributes)
    for name, given in known.items():
        sizes = (batch, *[time] * len(given.shape))
        shape = [sizes[axis] if size is None else size for axis, size in enumerate(given.shape)]
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        if name in {"key", "a", "b"}:
            count = attributes.get("kv_num_heads", attributes.get("num_heads", 1))
            heads = torch.unflatten(x, -1, (int(count), -1))
            x = F.normalize(heads, dim=-1).flatten(-2)
        elif name == "decay":
            x = F.logsigmoid(3 + x)
        elif name == "delta":
            x = F.softplus(x - 2)
        elif name == "beta":
            x = x.sigmoid()
        elif name == "A" and "W" in known:
            x = x.sigmoid() * 0.5
        elif name == "A":  # of a system in continuous time, or in discrete time
            x = -x.abs() if "delta" in known else -x.sigmoid()
        elif name == "W":
            x *= 0.5 * shape[-1] ** -0.5
        elif name in {"scale", "offset"}:
            x = x[: groups_of(attributes["K"], attributes["group"])].T / 8  # as the operator has it
        kind = getattr(torch, given.dtype)
        sample[name] = x > 0 if kind is torch.bool else x.to(kind).contiguous()
    if sample.pop("words", None) is not None:
        K, N, group = (int(attributes[name]) for name in ("K", "N", "group"))
        codes = torch.randint(-2, 2, (N, K), generator=generator, dtype=torch.int8)
        sample["codes"] = torch.from_numpy(pack_codes(codes.numpy(), 2, group))
    return sample


def kernels_of(plugin: Plugin, made: CompiledPlan, sm: int) -> NodeKernels:
    """Compiled kernels as an engine carries them, but for PTX in place of machine code."""
    code = {f"{sm}/{name}": each.ptx.encode() for name, each in made.code.items()}
    return NodeKernels(op=plugin.op.onnx_type, plans={sm: made.plan}, code=code)


def ways_of(kernels: NodeKernels) -> list[NodeKernels]:
    """Each way to compute it, whatever the shapes for which the plan would take it."""
    return [
        replace(kernels, plans={sm: replace(plan, variants=(replace(variant, when=None),))})
        for sm, plan in kernels.plans.items()
        for variant in plan.variants
    ]


def errors(
    plugin: Plugin,
    sample: Sample,
    kernels: NodeKernels,
    gpu: Gpu,
    in_place: Mapping[int, int] | None = None,
) -> list[float]:
    """max|a-b| / max|b| of each output against the operator in float64.

    Outputs start as NaN, or as the inputs that `in_place` tells them to lie upon.
    """
    _, inputs = request_of(plugin, sample, gpu.capability)
    shapes = [None if x is None else tuple(x.shape) for x in inputs]
    given = [None if x is None else gpu.put(x) for x in inputs]
    outputs = poisoned(kernels.plan, shapes)
    to = [gpu.put(x) for x in outputs]
    for output, source in (in_place or {}).items():
        to[output] = given[source] or 0
    scratch = torch.full([workspace(kernels, shapes)], 0xFF, dtype=torch.uint8)
    Launcher(kernels, gpu).launch(shapes, given, to, gpu.put(scratch), STREAM)
    return compared(plugin, sample, [gpu.get(at, x) for at, x in zip(to, outputs, strict=True)])


def poisoned(plan: LaunchPlan, shapes: Sequence[tuple[int, ...] | None]) -> list[Tensor]:
    """Outputs that are NaN everywhere."""
    return [
        torch.full(
            [evaluate(size, shapes) for size in output.shape],
            torch.nan,
            dtype=getattr(torch, output.dtype),
        )
        for output in plan.outputs
    ]


def compared(plugin: Plugin, sample: Sample, outputs: Sequence[Tensor]) -> list[float]:
    """The error of each output.

    Raises:
        OverflowError: where the operator itself leaves the range of an output.
    """
    exact = {
        name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in sample.items()
    }
    wanted = plugin.op.reference(**exact)
    for formal, a, b in zip(plugin.op.signature.outputs, outputs, wanted, strict=True):
        if (b.abs() > torch.finfo(a.dtype).max).any():
            raise OverflowError(
                f"{formal.name} of the operator {plugin.name!r} itself is beyond {a.dtype}: draw "
                "arguments of a kind that models have, by their names, in `draw`."
            )
    return [error_of(a, b) for a, b in zip(outputs, wanted, strict=True)]
