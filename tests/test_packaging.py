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
        if path.suffix in (".py", ".json") or path.name == "py.typed"
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

    assert {"pyproject.toml", "README.md", "LICENSE", "src/intaglio/cli.py"} <= names
    assert {"runtime/manifest.schema.json", "passes/exact/statefulize.py"} <= names
