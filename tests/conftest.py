"""What tests of several rooms share."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import intaglio
from intaglio.runtime.trt.flavour import has_device

if TYPE_CHECKING:
    from intaglio.exporter.export import ExportReport

STUB = """
void *getPluginRegistry(void);
void *createInferBuilder_INTERNAL(void *a, int b) { return 0; }
void *createNvOnnxParser_INTERNAL(void *a, void *b, int c) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *a, void *b, int c) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
void *getBuilderPluginRegistry(int a) { return getPluginRegistry(); }
_Bool initLibNvInferPlugins(void *a, const char *b) { return 1; }
"""

ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    """Whoever added a file and did not install it again is told so, not that an import failed."""
    unseen = files_that_the_install_does_not_see()
    if unseen:
        raise pytest.UsageError(
            f"the environment was made before {', '.join(unseen)} came or went: run `make env`."
        )


def files_that_the_install_does_not_see() -> list[str]:
    """Files of ours that a strict editable install, a tree of links, lacks or still has."""
    place = Path(intaglio.__file__).parent
    if "__editable__" not in str(place):
        return []  # a wheel
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    here = set()
    for package, name in setuptools["package-dir"].items():
        folder = ROOT / name
        found = [*folder.rglob("*.py")]
        for init in folder.rglob("__init__.py"):
            for pattern in setuptools["package-data"]["*"]:
                found += init.parent.glob(pattern)
        to = Path(*package.split("."))
        here |= {(to / path.relative_to(folder)).as_posix() for path in found}
    there = {
        path.relative_to(place.parent).as_posix()
        for path in place.rglob("*")
        if not path.is_dir() and "__pycache__" not in path.parts
    }
    return sorted(here ^ there)


if not has_device():  # before PyTorch imports Triton, which asks when it is imported
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark what `make quick` leaves out."""
    from slow import Slow

    is_slow = Slow()
    for item in items:
        if is_slow(item):
            item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def systems_traced_once(traces: Path) -> Iterator[None]:
    """A system of `models/` is traced once."""
    if "torch" not in sys.modules:
        yield
        return
    from traced_once import traced_once

    with traced_once(traces):
        yield


@pytest.fixture(scope="session")
def tensorrt_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the bindings of full TensorRT load, to be put on LD_LIBRARY_PATH.

    Its builder is on no package index, but bindings and the lean runtime are: the lean library
    stands in for the full one, and a stub for what neither builder nor parser is asked.
    """
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


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory, traces: Path) -> Iterator[Path]:
    """Where the command lies that runs in a child of a process with the libraries imported."""
    from warm import warm

    with warm(tmp_path_factory.mktemp("warm"), traces) as place:
        yield place


@pytest.fixture(scope="session")
def hybrid_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `tests/support/hybrid.py`."""
    import hybrid

    return hybrid.write(tmp_path_factory.mktemp("hybrid") / "model.pt")


@pytest.fixture(scope="session")
def export_hybrid(
    hybrid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, kernel_cache: Path
) -> Callable[..., "ExportReport"]:
    """Makes its bundle for ONNX Runtime and TensorRT, with an engine; skips where none can be."""
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("triton")
    import hybrid

    from intaglio.exporter.export import export
    from intaglio.runtime import user_cache

    def exported(**options: Any) -> "ExportReport":
        out = tmp_path_factory.mktemp("engine") / "bundle"
        known: dict[str, Any] = {"targets": ["ort", "trt"], "sm": [hybrid.SM], "steps": 40}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(user_cache, "folder", lambda kind: kernel_cache / kind)
            return export(hybrid_checkpoint, out, **known | options)

    return exported


@pytest.fixture(scope="session")
def hybrid_engine(export_hybrid: Callable[..., "ExportReport"]) -> "ExportReport":
    """Its bundle in fp32."""
    return export_hybrid(check_passes=True)


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where kernels that this run compiles are kept, for all of its processes."""
    return shared_folder(tmp_path_factory, "kernel-cache")


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where graphs of systems that this run traces are kept, for all of its processes."""
    return shared_folder(tmp_path_factory, "traces")


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    base = factory.getbasetemp()
    base = base.parent if base.name.startswith("popen-") else base  # of one of several workers
    folder = base / name
    folder.mkdir(exist_ok=True)
    return folder
