"""Every kernel as compiled, on an emulated GPU: errors against float64, and nothing left to chance.

    python benchmarks/emulated_kernels.py [--quick] [--json]

Needs no GPU.  The PTX that plugins carry is launched by their plans, for each compute capability:
with the samples of each operator in fp32, fp16 and bf16, every way of computing them, and with
layers of published models, a token and a prompt.  An access out of bounds or not aligned, or two
that no barrier orders, fails.  For a token, the bytes of the sectors that warps touch are counted
for each byte that they ask for; no times are told.  `--quick` takes the samples alone, on 8.0.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from evidence import Row, run

from intaglio.errors import UnsupportedError
from intaglio.ops.op import Sample
from intaglio.runtime.trt.kernels import NodeKernels
from intaglio.trt_plugins import NAMES, find
from intaglio.trt_plugins.ahead import Job, compile_all
from intaglio.trt_plugins.compile_plugin import CAPABILITIES
from intaglio.trt_plugins.plugin import Plugin, Request

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from emulator.device import Gpu
from emulator.kernel import UnknownInstructionError
from emulator.memory import AccessError, Traffic
from emulator.plugins import draw, errors, job_of, kernels_of, taken, ways_of

QUICK = (80,)
PROMPT = 70  # tokens: three chunks, the last of them not full
ROWS = (1, 3, 40)  # of a product: for each way of computing it by codes
WRITTEN_OUT = 100  # rows from which the weight is written out
SMALL = 1 << 22  # weights of a layer for which that is emulated: it takes minutes for larger ones


def measure(quick: bool) -> list[Row]:
    """Rows for each operator and capability."""
    torch.set_num_threads(1)
    return [
        row
        for sm in (QUICK if quick else CAPABILITIES)
        for name in NAMES
        for row in (*_samples(find(name), sm), *(() if quick else _published(find(name), sm)))
    ]


def _samples(plugin: Plugin, sm: int) -> Iterator[Row]:
    for kind in plugin.tolerance:
        given = taken(plugin, getattr(torch, kind), sm)
        if given:
            compiled = compile_all([job_of(plugin, sample, sm) for sample in given])
            pairs = zip(given, compiled, strict=True)
            cases = [(x, way) for x, made in pairs for way in ways_of(kernels_of(plugin, made, sm))]
            yield _row(f"{plugin.name}, sm_{sm}, {kind}, samples", plugin, cases, kind, sm)


def _published(plugin: Plugin, sm: int) -> Iterator[Row]:
    for what, request in plugin.requests(sm).items():
        try:
            plugin.kernels(request)
        except UnsupportedError:
            continue
        (made,) = compile_all([Job(plugin=plugin.name, request=request)])
        kernels = kernels_of(plugin, made, sm)
        cases = [(draw(request, batch=1, time=time), kernels) for time in _times(request)]
        kind = request.inputs[plugin.inputs[0]].dtype
        title = f"{plugin.name}, sm_{sm}, {what}"
        yield _row(title, plugin, cases, kind, sm)
        traffic = Traffic()
        errors(plugin, *cases[0], Gpu(sm, traffic=traffic))
        yield Row(
            name=f"{title}, a token: traffic",
            value=traffic.moved / traffic.asked,
            unit="bytes in sectors of 32 for each that is asked for",
            note=f"{traffic.moved:,} bytes moved",
        )


def _times(request: Request) -> Sequence[int]:
    if "K" not in request.attributes:
        return (1, PROMPT)
    size = int(request.attributes["K"]) * int(request.attributes["N"])
    return (*ROWS, WRITTEN_OUT) if size <= SMALL else ROWS


def _row(
    title: str, plugin: Plugin, cases: Sequence[tuple[Sample, NodeKernels]], kind: str, sm: int
) -> Row:
    """The worst error, or what went wrong."""
    worst, limit, note = 0.0, plugin.tolerance[kind], f"{len(cases)} calls"
    for sample, kernels in cases:
        try:
            worst = max(worst, *errors(plugin, sample, kernels, Gpu(sm)))
        except (AccessError, UnknownInstructionError) as error:
            worst, note = math.inf, f"{error} {' '.join(getattr(error, '__notes__', ()))}"
    return Row(
        name=title,
        value=worst,
        unit="of the largest",
        target=f"<= {limit:g}",
        holds=worst <= limit,
        against="float64",
        note=note,
    )


if __name__ == "__main__":
    run(__doc__, measure)
