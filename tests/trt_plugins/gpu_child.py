"""`benchmarks/gpu_kernels.py` without a GPU, in Triton's interpreter: see the test.

What PyTorch would place on a GPU stays where it is, and what is timed runs once, at small sizes.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import torch


def here(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which takes a GPU for the processor."""

    def call(*given: Any, **named: Any) -> Any:
        return function(*given, **{key: "cpu" if v == "cuda" else v for key, v in named.items()})

    return call


for name in ("empty", "full", "randint", "randn", "Generator"):
    setattr(torch, name, here(getattr(torch, name)))
torch.Tensor.cuda = lambda self: self  # type: ignore[assignment, method-assign, misc]
torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda *_: (9, 0)
torch.cuda.get_device_name = lambda *_: "no GPU"

import gpu_kernels  # noqa: E402
from evidence import Row  # noqa: E402


def once(make: Callable[[], Callable[[], object]], sample: object) -> float:  # noqa: ARG001
    """In place of `gpu_kernels.median`: run it, as if it took a microsecond."""
    make()()
    return 1.0


def broken() -> Iterator[Row]:
    """A part that fails after its first row."""
    yield Row(name="before", value=1.0, unit="")
    raise ValueError("of\nthe test")


gpu_kernels.median = once
parts = [
    *((title, part) for title, part in gpu_kernels._errors() if "float16" in title),
    ("broken", broken),
    ("step", lambda: gpu_kernels._decode("step", 2, 1, torch.bfloat16, 4.0)),
    ("prefill", lambda: gpu_kernels._prefill("prefill", tokens=70, keys=1, heads=2)),
    ("product", lambda: gpu_kernels._low_bit("product", 256, 512, 1, 10.0)),
]
rows = [row for title, part in parts for row in gpu_kernels._rows(title, part)]
sys.stdout.write(json.dumps([asdict(row) for row in rows]))
