"""What each kernel takes of a GPU, for every compute capability; compiled without one.

    python benchmarks/kernel_matrix.py [--quick] [--json]

Registers, shared memory and spills are those of the machine code.  Instructions are counted in the
main loop of the SASS, for each weight or each element of state and token that it handles: at the
speed of an H200's memory there are 1.96 issue slots for a weight of 2 bits in groups of 128.
Figures are recorded with the versions of Triton and its assembler; where these are the same, one
that is more than 5 % worse than recorded fails.  `--quick` compiles for 80 and 90 alone.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import triton
from evidence import Row, run
from triton.backends.nvidia.compiler import get_ptxas

from intaglio.errors import UnsupportedError
from intaglio.trt_plugins import NAMES, find
from intaglio.trt_plugins.ahead import Job, compile_all
from intaglio.trt_plugins.compile_plugin import CAPABILITIES

RECORD = Path(__file__).parent / "results" / "kernel_matrix.json"
QUICK = (80, 90)
WORSE = 1.05
WARP = 32


def measure(quick: bool) -> list[Row]:
    """Rows for each kernel, request and capability."""
    chosen = QUICK if quick else tuple(CAPABILITIES)
    jobs = {
        (name, what, sm): Job(plugin=name, request=request)
        for name in NAMES
        for sm in chosen
        for what, request in find(name).requests(sm).items()
    }
    refused = {key: why for key, job in jobs.items() if (why := _refusal(job))}
    rows = [
        Row(name=f"{name}, {what}, sm_{sm}", value=0, unit="kernels", note=f"refused: {why}")
        for (name, what, sm), why in refused.items()
    ]
    jobs = {key: job for key, job in jobs.items() if key not in refused}
    recorded = _recorded()
    compiled = compile_all(list(jobs.values()))
    for ((name, what, sm), job), made in zip(jobs.items(), compiled, strict=True):
        kernels = [k for way in find(name).kernels(job.request).ways for k in way.kernels]
        launches = [launch for variant in made.plan.variants for launch in variant.launches]
        for kernel, launch in zip(kernels, launches, strict=True):
            code = made.code[launch.code]
            title = f"{name}, {what}, sm_{sm}: {launch.code}"  # a kernel of one way
            shared = max(launch.shared, code.shared)
            yields = f"{code.registers} registers, {shared} B shared"
            rows.append(
                Row(name=f"{title}: spilled", value=code.stack, unit="B a thread", target="0",
                    holds=code.stack == 0, note=yields)
            )  # fmt: skip
            rows.append(_row(f"{title}: registers", code.registers, "a thread", recorded))
            if kernel.elements:
                count = loop(code.cubin) * launch.threads / kernel.elements
                rows.append(_row(f"{title}: loop", count, "instructions an element", recorded))
    rows += [Row(name=f"version: {tool}", value=value, unit="") for tool, value in tools().items()]
    return rows


def _refusal(job: Job) -> str:
    """Why there are no kernels for a job; empty if there are."""
    try:
        find(job.plugin).kernels(job.request)
    except UnsupportedError as error:
        return str(error)
    return ""


def _row(name: str, value: float, unit: str, recorded: Mapping[str, float]) -> Row:
    before = recorded.get(name)
    return Row(
        name=name,
        value=value,
        unit=unit,
        target=None if before is None else f"<= {WORSE * before:.3g}",
        holds=None if before is None else value <= WORSE * before,
        against=None if before is None else "the record",
    )


def _recorded() -> dict[str, float]:
    """Recorded values; none where the record was made with other tools."""
    if not RECORD.exists():
        return {}
    rows: list[dict[str, Any]] = json.loads(RECORD.read_text())["rows"]
    values = {row["name"]: row["value"] for row in rows}
    same = all(values.get(f"version: {tool}") == value for tool, value in tools().items())
    return values if same else {}


def tools() -> dict[str, float]:
    """Versions of Triton and its assemblers, as numbers: 309 for 3.9."""
    found = {"triton": _number(triton.__version__)}
    for sm in (80, 90):
        tool = Path(get_ptxas(sm).path)
        said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True)
        (version,) = re.findall(r"release (\S+),", said.stdout)
        found[f"{tool.name} for sm_{sm}"] = _number(version)
    return found


def _number(version: str) -> float:
    major, minor = version.split(".")[:2]
    return float(int(major) * 100 + int(minor))


def loop(cubin: bytes) -> int:
    """Instructions of the longest loop of a kernel."""
    bodies = [end - start for start, end in loops(disassemble(cubin))]
    return max(bodies, default=0)


def disassemble(cubin: bytes) -> list[tuple[int, str]]:
    """Address and text of each instruction."""
    tool = Path(get_ptxas(80).path).with_name("cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        said = subprocess.run([tool, "-sass", path], capture_output=True, text=True, check=True)
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.+?)\s*;", said.stdout)
    return [(int(address, 16), text) for address, text in found]


def loops(instructions: list[tuple[int, str]]) -> Iterator[tuple[int, int]]:
    """Indices of the first instruction of each loop, and of the one after its jump back."""
    places = {address: index for index, (address, _) in enumerate(instructions)}
    for index, (address, text) in enumerate(instructions):
        jump = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)$", text)
        if jump is not None and (target := int(jump[1], 16)) < address:  # a kernel ends in itself
            yield places[target], index + 1


if __name__ == "__main__":
    run(__doc__, measure)
