"""Compiles programs with `intaglio.hpp` against the library that is in ONNX Runtime's wheel."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

import intaglio

HEADERS = Path(__file__).parents[1] / "cpp"  # ONNX Runtime's, as far as they are used


def compiled(source: Path) -> Path:
    """The program of `source`, beside it in a folder of a temporary one."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    (library,) = (Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*")
    link = source.parent / "libonnxruntime.so.1"  # the name by which it is loaded
    link.symlink_to(library)
    program = source.with_suffix("")
    flags = "-std=c++17 -Wall -Wextra -Wconversion -Wshadow -Werror".split()
    folders = [f"-I{intaglio.get_include()}", f"-I{HEADERS}", f"-Wl,-rpath,{link.parent}"]
    command = [compiler, *flags, *folders, str(source), str(link), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    return program
