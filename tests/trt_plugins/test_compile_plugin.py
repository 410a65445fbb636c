"""Kernels compile without a GPU, spill nothing, and take exactly the arguments of their plan."""

import re
from pathlib import Path

import pytest

from intaglio.errors import UnsupportedError
from intaglio.runtime.launch import Buffer, LaunchPlan
from intaglio.trt_plugins import NAMES, find
from intaglio.trt_plugins.ahead import Code, CompiledPlan, Job, compile_all
from intaglio.trt_plugins.plugin import Request

CAPABILITIES = (80, 87, 90, 120)
MOST = 1  # requests of a plugin that are compiled here; benchmarks/kernel_matrix.py takes them all


@pytest.mark.parametrize("name", NAMES)
def test_no_kernel_spills(name: str, kernel_cache: Path) -> None:
    """The first request of a plugin, on a server, a Jetson and two newer cards."""
    jobs = {
        (what, sm): Job(plugin=name, request=request)
        for sm in CAPABILITIES
        for what, request in list(find(name).requests(sm).items())[:MOST]
    }
    for (what, sm), made in zip(
        jobs, compile_all(list(jobs.values()), kept=kernel_cache, workers=1), strict=True
    ):
        for entry, code in made.code.items():
            assert code.stack == 0, f"{what} on {sm}: {entry} spills {code.stack} bytes"
        for variant in made.plan.variants:
            for launch in variant.launches:
                assert parameters(made.code[launch.code], launch.entry) == [
                    "u64" if isinstance(argument, Buffer) else "u32"
                    for argument in launch.arguments
                ]


def parameters(code: Code, entry: str) -> list[str]:
    """Types of the parameters of a kernel, as its PTX declares them."""
    found = re.search(rf"\.entry {entry}\((.*?)\)", code.ptx, re.DOTALL)
    assert found is not None
    return re.findall(r"\.param \.(\w+)", found[1])


def test_what_was_compiled_is_kept_by_content(tmp_path: Path) -> None:
    """A second request is answered from the file, which says all that was compiled."""
    (request, *_) = find("linear_attention").requests(80).values()
    job = Job(plugin="linear_attention", request=request)
    counted: list[Job] = []
    (first,) = compile_all([job], kept=tmp_path, done=counted.append)
    (second,) = compile_all([job], kept=tmp_path, done=counted.append)

    assert first == second == CompiledPlan.from_json(first.to_json())
    assert counted == [job]
    assert LaunchPlan.from_json(first.plan.to_json()) == first.plan
    other = Request(attributes=request.attributes, inputs=request.inputs, sm=90)
    compile_all([Job(plugin="linear_attention", request=other)], kept=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("sm", "cuda", "message"),
    [
        (70, None, "no kernels for compute capability 70"),
        (120, "12.4", r"CUDA 12.4 reads PTX 8.4; compute capability 120 needs 8.7"),
    ],
)
def test_a_deployment_that_cannot_run_kernels_is_refused(
    sm: int, cuda: str | None, message: str, tmp_path: Path
) -> None:
    """The child's refusal is the parent's error."""
    (request, *_) = find("linear_attention").requests(sm).values()
    with pytest.raises(UnsupportedError, match=message):
        compile_all([Job(plugin="linear_attention", request=request, cuda=cuda)], kept=tmp_path)
    assert list(tmp_path.iterdir()) == []
