"""The sdist and the wheel hold what they must, and the wheel runs bundles without any extra."""

import json
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import torch

from intaglio import export

ROOT = Path(__file__).parents[1]
ROOMS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
    "package-dir"
]
NOT_SOURCE = ignore_patterns(
    ".*", "build", "dist", "demo", "*.egg-info", "__pycache__", "*.pt", "results"
)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, built from a copy of the tree, and the wheel, built from that."""
    folder = tmp_path_factory.mktemp("packaging")
    copytree(ROOT, folder / "tree", ignore=NOT_SOURCE)
    subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "build",
            "--no-isolation",
            "--outdir",
            folder / "dist",
            "tree",
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder / "dist"


def package_files() -> set[str]:
    """The files of every package, by their place in an installation."""
    return {
        "/".join((*package.split("."), *path.relative_to(ROOT / folder).parts))
        for package, folder in ROOMS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".json", ".css", ".hpp") or path.name == "py.typed"
        if path.parent.name != "checkpoints"
    }


def test_the_wheel_holds_every_package_file_and_nothing_else(dist: Path) -> None:
    """No tests, no checkpoints; the marker of types and the manifest's schema are there."""
    (wheel,) = dist.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    assert names == package_files()
    assert {"intaglio/py.typed", "intaglio/runtime/manifest.schema.json"} <= names


def test_the_sdist_holds_what_the_wheel_is_built_from(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "src/intaglio/cli/frame.py",
    } <= names
    assert {"runtime/manifest.schema.json", "passes/exact/statefulize.py"} <= names


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a second environment, with the wheel and no extra."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    (wheel,) = dist.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-P", "-m", "pip", "--python", str(python)]
    constraints = str(ROOT / "constraints.txt")
    subprocess.run([*pip, "install", "--quiet", "-c", constraints, str(wheel)], check=True)
    return python.parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a trained checkpoint."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("exported") / "bundle"
    export(ROOT / "models" / "checkpoints" / "llama.pt", path, verify=False)
    return path


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("module", ["torch", "onnx", "onnx_ir", "onnxscript", "safetensors"])
def test_the_second_environment_lacks_the_extra(
    installed: Path, tmp_path: Path, module: str
) -> None:
    """What the tests below show, they show without these."""
    found = run(installed / "python", "-c", f"import {module}", cwd=tmp_path)

    assert f"No module named '{module}'" in found.stderr


STEPS = """
import sys
import numpy as np
from intaglio.runtime import Session

session = Session.load(sys.argv[1])
ids = np.array([[100, 101, 102]])
parts = [session.step({"input_ids": ids[:, i : i + 1]})["logits"] for i in range(3)]
session.state.reset()
whole = session.step({"input_ids": ids})["logits"]
print(whole.shape, np.abs(np.concatenate(parts, 1) - whole).max() < 1e-4)
"""


def test_the_wheel_steps_a_bundle_without_torch(
    installed: Path, bundle: Path, tmp_path: Path
) -> None:
    """Token by token and all at once give the same logits."""
    done = run(installed / "python", "-c", STEPS, bundle, cwd=tmp_path)

    assert (done.stdout, done.stderr) == ("(1, 3, 256) True\n", "")


def test_the_wheels_commands_work_without_torch(
    installed: Path, bundle: Path, tmp_path: Path
) -> None:
    """inspect, run, doctor and --help need no extra."""
    inspected = run(installed / "intaglio", "inspect", bundle, "--json", cwd=tmp_path)
    ran = run(
        installed / "intaglio",
        "run",
        bundle,
        "--prompt",
        "def",
        "--echo",
        "--steps=5",
        cwd=tmp_path,
    )
    examined = run(installed / "intaglio", "doctor", "--json", cwd=tmp_path)
    helped = run(installed / "intaglio", "export", "--help", cwd=tmp_path)

    assert json.loads(inspected.stdout)["manifest"]["graphs"]["main"]["targets"]["ort"]["opset"] > 0
    assert (ran.returncode, ran.stdout[:3]) == (0, "def")
    assert not json.loads(examined.stdout)["can"]["export"]["ok"]
    assert "--check-passes" in helped.stdout


@pytest.mark.parametrize(
    "arguments",
    [["export", "model.pt", "-o", "out"], ["verify", "out", "--against", "x"], ["list", "ops"]],
)
def test_what_needs_the_extra_says_so(
    installed: Path, tmp_path: Path, arguments: list[str]
) -> None:
    """Exit code 1, one message that names the extra, and nothing written."""
    done = run(installed / "intaglio", *arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'intaglio[export]'" in done.stderr
    assert not list(tmp_path.iterdir())
