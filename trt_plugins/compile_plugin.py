"""Compile a plugin's kernels ahead of time, on a machine with or without a GPU.

Triton appends pointers to scratch memory that no kernel here uses to the parameters of each kernel.
They are taken out of the PTX, which is then assembled once more: what is launched has exactly the
arguments that its plan lists, as TensorRT's ahead-of-time plugins require.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from intaglio.errors import UnsupportedError
from intaglio.runtime.launch import (
    POINTER_ALIGNMENT,
    Argument,
    Buffer,
    Launch,
    LaunchPlan,
    Variant,
    product,
)

from .ahead import Code, CompiledPlan
from .plugin import Kernel, Plugin, Request

WARP = 32
# Compute capabilities, and the first version of PTX that knows each.
CAPABILITIES = {
    75: 80,
    80: 80,
    86: 80,
    87: 80,
    89: 80,
    90: 80,
    100: 86,
    110: 90,
    120: 87,
    121: 88,
}
_DTYPES = {
    "float16": "*fp16",
    "bfloat16": "*bf16",
    "float32": "*fp32",
    "uint8": "*u8",
    "int16": "*i16",
    "int32": "*i32",
    "int64": "*i64",
    "bool": "*i1",
}
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "uint8": 1, "int16": 2, "int32": 4}


def ptx_version(cuda: str | None, sm: int) -> int:
    """The newest version of PTX that a deployment with this version of CUDA takes, 85 for 8.5.

    Without a version of CUDA, the oldest that knows the capability, and at least that of 12.6.

    Raises:
        UnsupportedError: if that CUDA does not know the compute capability.
    """
    least = CAPABILITIES.get(sm)
    if least is None:
        known = ", ".join(map(str, CAPABILITIES))
        raise UnsupportedError(f"no kernels for compute capability {sm}; there are for {known}.")
    if cuda is None:
        return max(85, least)
    major, minor = (int(part) for part in cuda.split(".")[:2])
    version = 80 + minor - (minor > 5) if major == 12 else major * 10 - 40 + minor
    if version < least:
        raise UnsupportedError(
            f"CUDA {cuda} reads PTX {version / 10}; compute capability {sm} needs {least / 10}."
        )
    return version


def compile_plugin(plugin: Plugin, request: Request, cuda: str | None = None) -> CompiledPlan:
    """Compile all kernels of a request.

    Args:
        plugin: what to compile.
        request: the node.
        cuda: version of CUDA of the deployment, see `ptx_version`.

    Raises:
        UnsupportedError: if there are no kernels for the request.
    """
    version = ptx_version(cuda, request.sm)
    kernels = plugin.kernels(request)
    dtypes: dict[str, list[str | None]] = {
        "input": [
            request.inputs[name].dtype if name in request.inputs else None for name in plugin.inputs
        ],
        "output": [output.dtype for output in kernels.outputs],
    }
    code: dict[str, Code] = {}
    variants = []
    for way in kernels.ways:
        known: dict[str, Sequence[str | None]] = {
            **dtypes,
            "scratch": [each.dtype for each in way.scratch],
        }
        launches = tuple(
            _compile(kernel, known, request.sm, version, code) for kernel in way.kernels
        )
        scratch = tuple(product([_BYTES[each.dtype], *each.shape]) for each in way.scratch)
        variants.append(Variant(when=way.when, launches=launches, scratch=scratch))
    plan = LaunchPlan(
        inputs=tuple(dtypes["input"]), outputs=tuple(kernels.outputs), variants=tuple(variants)
    )
    return CompiledPlan(plan=plan, code=code)


def _compile(
    kernel: Kernel,
    dtypes: Mapping[str, Sequence[str | None]],
    sm: int,
    version: int,
    code: dict[str, Code],
) -> Launch:
    """Add the code of a kernel to `code`; return its launch."""
    function = kernel.function
    names = list(function.arg_names)
    absent = {name: None for name, given in kernel.arguments.items() if given is None}
    constants = {**kernel.constants, **absent}
    given = {name: kernel.arguments[name] for name in names if name not in constants}
    signature = dict.fromkeys(names, "constexpr") | {
        name: _type(argument, dtypes) for name, argument in given.items()
    }
    aligned = {
        (names.index(name),): [["tt.divisibility", POINTER_ALIGNMENT]]
        for name, argument in given.items()
        if isinstance(argument, Buffer)
    }
    made = triton.compile(
        ASTSource(function, signature, constants, aligned),
        target=GPUTarget("cuda", sm, WARP),
        options={
            "num_warps": kernel.warps,
            "num_stages": kernel.stages,
            "ptx_version": version,
            "enable_fp_fusion": True,
        },
    )
    entry, ptx = made.metadata.name, made.asm["ptx"]
    if made.metadata.global_scratch_size:
        raise UnsupportedError(f"{entry} needs global scratch memory, which no plan provides.")
    name = f"{entry}_{len(code)}"
    code[name] = _assemble(without_hidden(ptx, entry, len(given)), sm)
    arguments: tuple[Any, ...] = tuple(given.values())
    return Launch(
        code=name,
        entry=entry,
        arguments=arguments,
        grid=kernel.grid,
        threads=WARP * made.metadata.num_warps,
        shared=made.metadata.shared,
    )


def _type(argument: Argument | None, dtypes: Mapping[str, Sequence[str | None]]) -> str:
    if not isinstance(argument, Buffer):
        return "i32"
    dtype = dtypes[argument.kind][argument.index]
    assert dtype is not None
    return _DTYPES[dtype]


def without_hidden(ptx: str, entry: str, count: int) -> str:
    """The PTX of a kernel with its first `count` parameters alone."""
    found = re.search(rf"(\.visible \.entry {re.escape(entry)}\()(.*?)(\n\))", ptx, re.DOTALL)
    assert found is not None, f"no entry {entry} in the PTX"
    parameters = [line.strip().rstrip(",") for line in found[2].strip().split("\n")]
    for line in parameters[count:]:
        used = re.findall(rf"\b{re.escape(line.split()[-1])}\b", ptx)
        assert len(used) == 1, f"{entry} reads the parameter {line}, which no plan provides"
    kept = "".join(f"\n\t{line}," for line in parameters[:count]).rstrip(",")
    return ptx[: found.start(2)] + kept + ptx[found.end(2) :]


def _assemble(ptx: str, sm: int) -> Code:
    """Assemble PTX for the capability that it names."""
    (target,) = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
    tool = Path(get_ptxas(sm).path)
    with tempfile.TemporaryDirectory() as folder:
        text, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        text.write_text(ptx)
        _call([tool, f"--gpu-name={target}", text, "-o", binary])
        usage = _call([tool.with_name("cuobjdump"), "-res-usage", binary])
        cubin = binary.read_bytes()
    resources = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage)}
    return Code(
        ptx=ptx,
        cubin=cubin,
        registers=resources["REG"],
        stack=resources["STACK"],
        shared=resources["SHARED"],
    )


def _call(command: Sequence[Any]) -> str:
    done = subprocess.run(  # noqa: S603  Triton's own tools, by their paths
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UnsupportedError(f"{Path(command[0]).name} failed: {done.stderr or done.stdout}")
    return done.stdout
