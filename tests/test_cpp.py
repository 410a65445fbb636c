"""The C++ program of docs/cpp.md compiles, and where ONNX Runtime's headers are installed, runs.

`tests/cpp` declares what the page uses of that interface, for machines without the headers.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import intaglio
from intaglio.runtime import Session, generate

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which("c++")
STEPS = 12

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = (ROOT / "docs" / "cpp.md").read_text(encoding="utf-8")
    found = re.findall(r"^```cpp\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    path = tmp_path_factory.mktemp("cpp") / "step.cpp"
    path.write_text(found[0], encoding="utf-8")
    return path


def compiled(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(COMPILER), "-std=c++17", "-Wall", "-Wextra", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_program_compiles(program: Path) -> None:
    done = compiled("-Werror", "-fsyntax-only", "-I", ROOT / "tests" / "cpp", program)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("checkpoint", ["llama", "llama_window", "gated_deltanet"])
def test_it_prints_what_a_session_generates(program: Path, checkpoint: str, tmp_path: Path) -> None:
    """With an installed ONNX Runtime: static caches, windows, recurrent and convolution states."""
    done = compiled(program, "-lonnxruntime", "-o", tmp_path / "step")
    if "onnxruntime_cxx_api.h" in done.stderr:
        pytest.skip("the headers of ONNX Runtime are not installed")
    assert done.returncode == 0, done.stderr
    bundle = tmp_path / "bundle"
    intaglio.export(ROOT / f"models/checkpoints/{checkpoint}.pt", bundle, verify=False)
    prompt = b"def "
    new = generate(Session.load(bundle), list(prompt), max_new_tokens=STEPS)
    command = [str(tmp_path / "step"), str(bundle), prompt.decode(), str(STEPS)]

    assert subprocess.run(command, capture_output=True, check=True).stdout == bytes(new) + b"\n"
