"""Quickly deployable plugins, driven against NVIDIA's own plugin layer of full TensorRT.

The builder is not on the package index, but its bindings and the lean runtime are: with a folder in
which the lean library stands in for the full one, and a stub for what neither builder nor parser is
asked, the plugin layer imports and plugins register without a GPU.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from intaglio.errors import UnsupportedError
from intaglio.runtime.launch import Buffer, Launch, Output, Plan, Variant, dim
from intaglio.trt_plugins import NAMES, find
from intaglio.trt_plugins.ahead import Compiled, Job, compile_all
from intaglio.trt_plugins.quick import define

STUB = """
void *getPluginRegistry(void);
void *createInferBuilder_INTERNAL(void *a, int b) { return 0; }
void *createNvOnnxParser_INTERNAL(void *a, void *b, int c) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *a, void *b, int c) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
void *getBuilderPluginRegistry(int a) { return getPluginRegistry(); }
_Bool initLibNvInferPlugins(void *a, const char *b) { return 1; }
"""
CHILD = Path(__file__).with_name("quick_child.py")
BATCH, TIME = 3, 70


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the bindings load."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    lean = find_spec("tensorrt_lean_libs")
    if compiler is None or lean is None or find_spec("tensorrt_bindings") is None:
        pytest.skip("needs a C compiler and the bindings and lean libraries of TensorRT")
    folder = tmp_path_factory.mktemp("libraries")
    place = next(iter(lean.submodule_search_locations or ()))
    (library,) = Path(place).glob("libnvinfer_lean.so.*")
    major = library.name.rpartition(".")[2]
    (folder / f"libnvinfer.so.{major}").symlink_to(library)
    (folder / "stub.c").write_text(STUB)
    for name in ("nvinfer_plugin", "nvonnxparser"):
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", folder / f"lib{name}.so.{major}",
             folder / "stub.c", f"-L{folder}", f"-l:libnvinfer.so.{major}"],
            check=True,
        )  # fmt: skip
    return folder


def sized(shape: Sequence[int | None], time_axis: int) -> list[int]:
    """A shape with sizes for what is dynamic."""
    return [
        size if size is not None else TIME if axis == time_axis else BATCH
        for axis, size in enumerate(shape)
    ]


def test_every_operator_deploys_quickly(libraries: Path, kernel_cache: Path) -> None:
    """Arguments in TensorRT's order, grid, block, shared memory and sizes as in the plan."""
    jobs, lines = [], []
    for name in NAMES:
        request = replace(next(iter(find(name).requests(80).values())), alone=True)
        jobs.append((name, request, Job(plugin=name, request=request)))
    for (name, request, _), made in zip(
        jobs, compile_all([job for *_, job in jobs], kept=kernel_cache), strict=True
    ):
        axis = 2 if name == "causal_conv_with_state" else 1
        inputs = find(name).inputs
        shapes = [
            sized(request.inputs[each].shape, axis) if each in request.inputs else None
            for each in inputs
        ]
        entry = {"op": name, "compiled": made.to_json(), "inputs": inputs, "shapes": shapes}
        lines.append(json.dumps(entry))
    run = subprocess.run(
        [sys.executable, CHILD],
        input="\n".join(lines),
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    counts = [int(line) for line in run.stdout.splitlines() if line.isdecimal()]
    assert len(counts) == len(NAMES)
    assert all(count >= 1 for count in counts)


def plan_of(arguments: tuple[Buffer | int, ...], *, launches: int = 1) -> Compiled:
    launch = Launch(
        code="k", entry="k", arguments=arguments, grid=(1, 1, dim(0, 0)), threads=32, shared=0
    )
    plan = Plan(
        inputs=("float16",),
        outputs=(Output(dtype="float16", shape=(dim(0, 0),)),),
        variants=(Variant(when=None, launches=(launch,) * launches),),
    )
    return Compiled(plan=plan, code={})


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
