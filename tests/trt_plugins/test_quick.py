"""Quickly deployable plugins, driven against NVIDIA's own plugin layer of full TensorRT.

They register without a GPU; `tests/conftest.py` says with which libraries.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gpu
import pytest
from emulator.requests import wide

from intaglio.errors import UnsupportedError
from intaglio.runtime.launch import Buffer, Launch, LaunchPlan, Output, Variant, dim
from intaglio.trt_plugins import NAMES
from intaglio.trt_plugins.ahead import CompiledPlan, Job, compile_all
from intaglio.trt_plugins.quick import define

CHILD = Path(__file__).with_name("quick_child.py")
SM = 80


def test_every_operator_deploys_quickly(tensorrt_libraries: Path, kernel_cache: Path) -> None:
    """What TensorRT would launch as it is told to, and with what it would pass, is the operator."""
    jobs = [Job(plugin=name, request=replace(wide(name, SM), alone=True)) for name in NAMES]
    compiled = compile_all(jobs, kept=kernel_cache)
    lines = [
        json.dumps({"op": name, "compiled": made.to_json()})
        for name, made in zip(NAMES, compiled, strict=True)
    ]
    run = subprocess.run(
        [sys.executable, CHILD],
        input="\n".join(lines),
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(tensorrt_libraries),
            "PYTHONPATH": str(Path(gpu.__file__).parent),
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    counts = [int(line) for line in run.stdout.splitlines() if line.isdecimal()]
    assert len(counts) == len(NAMES)
    assert all(count >= 1 for count in counts)


def plan_of(arguments: tuple[Buffer | int, ...], *, launches: int = 1) -> CompiledPlan:
    launch = Launch(
        code="k", entry="k", arguments=arguments, grid=(1, 1, dim(0, 0)), threads=32, shared=0
    )
    plan = LaunchPlan(
        inputs=("float16",),
        outputs=(Output(dtype="float16", shape=(dim(0, 0),)),),
        variants=(Variant(when=None, launches=(launch,) * launches),),
    )
    return CompiledPlan(plan=plan, code={})


def test_what_is_not_one_launch_is_refused() -> None:
    """TensorRT would launch the first alone."""
    from types import SimpleNamespace

    given = (Buffer("input", 0), Buffer("output", 0))
    with pytest.raises(UnsupportedError, match="takes several kernels"):
        define(SimpleNamespace(plugin=None), "k", plan_of(given, launches=2), ["x"])


def test_another_order_of_arguments_is_refused() -> None:
    """TensorRT passes inputs, integers, outputs; another order gives plausible garbage."""
    from types import SimpleNamespace

    given = (Buffer("output", 0), Buffer("input", 0))
    with pytest.raises(UnsupportedError, match="arguments in another order"):
        define(SimpleNamespace(plugin=None), "k", plan_of(given), ["x"])
