"""`benchmarks/gpu_kernels.py` without a GPU, in Triton's interpreter: see the test.

What PyTorch would place on a GPU stays where it is, what is timed runs once, at small sizes, and
what goes through the driver runs on the emulated GPU.
"""

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
for room in (Path(__file__).parents[1] / "support", Path(__file__).parents[2] / "benchmarks"):
    sys.path.insert(0, str(room))

import torch  # noqa: E402

SM, KEPT = 90, Path(sys.argv[1])


def here(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which takes a GPU for the processor."""

    def call(*given: Any, **named: Any) -> Any:
        return function(*given, **{key: "cpu" if v == "cuda" else v for key, v in named.items()})

    return call


for name in ("empty", "full", "randint", "randn", "Generator"):
    setattr(torch, name, here(getattr(torch, name)))
torch.Tensor.cuda = lambda self: self  # type: ignore[assignment, method-assign, misc]
torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda *_: divmod(SM, 10)
torch.cuda.get_device_name = lambda *_: "no GPU"
torch.cuda.synchronize = lambda *_: None
torch.cuda.current_stream = lambda *_: SimpleNamespace(cuda_stream=STREAM)  # type: ignore[assignment]

import gpu_kernels  # noqa: E402
from emulator.device import STREAM, Gpu  # noqa: E402
from evidence import Row  # noqa: E402

from intaglio.trt_plugins import NAMES, find  # noqa: E402
from intaglio.trt_plugins.ahead import CompiledPlan, Job, compile_all  # noqa: E402
from intaglio.trt_plugins.launch_torch import request_of  # noqa: E402
from intaglio.trt_plugins.plugin import Plugin, Request  # noqa: E402


class Host(Gpu):
    """An emulated GPU in whose memory all tensors of PyTorch lie."""

    def allocations(self) -> dict[int, int]:
        tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.numel()]
        storages = [x.untyped_storage() for x in tensors]
        return {storage.data_ptr(): storage.nbytes() for storage in storages}


def compile_plugin(plugin: Plugin, request: Request) -> CompiledPlan:
    """In place of the one that compiles in this process, of interpreted kernels: PTX as code."""
    (made,) = compile_all([Job(plugin=plugin.name, request=request)], kept=KEPT)
    code = {name: replace(each, cubin=each.ptx.encode()) for name, each in made.code.items()}
    return replace(made, code=code)


def once(make: Callable[[], Callable[[], object]], sample: object) -> float:  # noqa: ARG001
    """In place of `gpu_kernels.median`: run it, as if it took a microsecond."""
    make()()
    return 1.0


def broken() -> Iterator[Row]:
    """A part that fails after its first row."""
    yield Row(name="before", value=1.0, unit="")
    raise ValueError("of\nthe test")


gpu_kernels.median = once
vars(gpu_kernels)["compile_plugin"] = compile_plugin
sys.modules["cuda.bindings.driver"] = Host(SM)  # type: ignore[assignment]
requests = {
    plugin.name: request_of(plugin, gpu_kernels._sample(plugin), SM)[0]
    for plugin in map(find, NAMES)
}
jobs = [
    Job(plugin=name, request=replace(request, alone=alone))
    for name, request in requests.items()
    for alone in (False, True)
]
compile_all(jobs, kept=KEPT, workers=1)  # at once, rather than by a compiler for each
parts = [
    *((title, part) for title, part in gpu_kernels._errors() if "float16" in title),
    *gpu_kernels._launched(),
    ("broken", broken),
    ("step", lambda: gpu_kernels._decode("step", 2, 1, torch.bfloat16, 4.0)),
    ("prefill", lambda: gpu_kernels._prefill("prefill", tokens=70, keys=1, heads=2)),
    ("product", lambda: gpu_kernels._low_bit("product", 256, 512, 1, 10.0)),
]
rows = [row for title, part in parts for row in gpu_kernels._rows(title, part)]
sys.stdout.write(json.dumps([asdict(row) for row in rows]))
