"""File, registry entry and test file go together, and pyproject.toml lists every package."""

import ast
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def ops() -> Iterable[str]:
    from intaglio.ops import OPS

    return [op.name for op in OPS]


def passes() -> Iterable[str]:
    from intaglio.passes import PASSES

    return [entry.name for entry in PASSES]


def models() -> Iterable[str]:
    from intaglio.models import MODELS

    return [model.name for model in MODELS]


def plugins() -> Iterable[str]:
    from intaglio.trt_plugins import NAMES

    return NAMES


# A registry, the folders whose files declare its entries, and the folder of their tests.
REGISTRIES = [
    pytest.param(ops, ["src/intaglio/ops"], "tests/ops", id="ops"),
    pytest.param(
        passes, ["passes/exact", "passes/calibrated", "passes/lower"], "tests/passes", id="passes"
    ),
    pytest.param(models, ["models"], "tests/models", id="models"),
    pytest.param(plugins, ["trt_plugins"], "tests/trt_plugins", id="plugins"),
]
HELPERS = {
    "ahead",
    "compile_plugin",
    "launch_torch",
    "layout",
    "low_bit_pass",
    "low_bit_planes",
    "model",
    "op",
    "pela",
    "plugin",
    "quick",
    "supernet",
    "training",
    "tuning",
    "worker",
}


@pytest.mark.parametrize(("registry", "folders", "tests"), REGISTRIES)
def test_each_file_is_a_registry_entry_with_a_test_file(
    registry: Callable[[], Iterable[str]], folders: list[str], tests: str
) -> None:
    """Whoever adds a file is told to register and to test it, and whoever removes one, too."""
    files = sorted(
        path.stem
        for folder in folders
        for path in (ROOT / folder).glob("*.py")
        if path.stem not in HELPERS and not path.stem.startswith("_")
    )
    tested = {path.stem.removeprefix("test_") for path in (ROOT / tests).rglob("test_*.py")}
    entries = sorted(name.replace("-", "_") for name in registry())

    assert [file for file in files if file not in entries] == [], "files that no __init__.py lists"
    assert [name for name in entries if name not in files] == [], "entries that have no file"
    assert [name for name, count in Counter(entries).items() if count > 1] == [], "entries, twice"
    assert [file for file in files if file not in tested] == [], f"without a file in {tests}"


def test_every_pass_is_run_by_something() -> None:
    """By the exporter, or by a user, whom a page tells how: else it rots unseen."""
    from intaglio.passes import PASSES

    files = [ROOT / "passes/pipeline.py", *(ROOT / "exporter").rglob("*.py")]
    named = {
        node.id
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name)
    }
    pages = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    idle = [each.name for each in PASSES if each.__name__ not in named]

    unseen = [name for name in idle if f"`{name}`" not in pages and f" {name}" not in pages]

    assert unseen == [], "neither in a list of passes/pipeline.py nor on a page of docs/"


def exported_in(tree: ast.Module) -> set[str]:
    """Files of models/ that a test file names, if it calls our `export` somewhere."""
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if not {"export", "intaglio.export"} & set(calls):
        return set()
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return texts | {(module or "").removeprefix("intaglio.models.") for module in modules}


def test_every_model_is_exported_by_a_test() -> None:
    """A system is nothing before a test has taken it from its training form to a bundle."""
    files = (ROOT / "tests").rglob("test_*.py")
    exported = set().union(*(exported_in(ast.parse(path.read_text())) for path in files))
    left_out = [name for name in models() if name.replace("-", "_") not in exported]

    assert left_out == [], "no test file that names it calls `export`"


def test_a_call_of_anothers_export_takes_no_model_to_a_bundle() -> None:
    """PyTorch's own, or the word in a name, stands beside many models."""
    named = "from intaglio.models.gla import build\n"

    assert "gla" in exported_in(ast.parse(named + "intaglio.export(build(), path)"))
    assert exported_in(ast.parse(named + "torch.onnx.export(build())")) == set()
    assert exported_in(ast.parse(named + "def test_export(): ...")) == set()


def test_every_checkpoint_is_used_by_a_test() -> None:
    """What is shipped as trained loads with the code beside it."""
    texts = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    shipped = {path.stem for path in (ROOT / "models/checkpoints").glob("*.pt")}

    assert {name for name in shipped if f'"{name}"' not in texts and f"{name}.pt" not in texts} == (
        set()
    )


def test_the_page_of_names_lists_what_graphs_say_of_themselves() -> None:
    """Keys of metadata are read by others than those who write them."""
    from intaglio import graph_keys

    page = (ROOT / "docs/names.md").read_text()
    keys = [value for name, value in vars(graph_keys).items() if name.isupper()]

    assert graph_keys.MODULE in keys
    assert [key for key in keys if f"`{key}`" not in page] == []


def test_every_module_has_a_test_file_or_says_which_stands_for_it() -> None:
    """Whoever adds a module writes its test, or says through which one it is tested."""
    through: dict[str, list[str]] = tomllib.loads(
        (ROOT / "tests/tested_through.toml").read_text(encoding="utf-8")
    )
    patterns = [pattern for each in through.values() for pattern in each]
    alone = []
    for folder in SETUPTOOLS["package-dir"].values():
        room = ROOT / "tests" / folder.removeprefix("src/intaglio")
        for path in (ROOT / folder).rglob("*.py"):
            place = path.relative_to(ROOT / folder)
            if path.stem.startswith("_"):
                continue
            if not (room / place.parent / f"test_{path.name}").is_file():
                alone.append(f"{folder}/{place.with_suffix('').as_posix()}")

    listed = "tests/tested_through.toml"
    untested = [name for name in alone if not any(fnmatch(name, each) for each in patterns)]
    idle = [each for each in patterns if not any(fnmatch(name, each) for name in alone)]

    assert [name for name in through if not (ROOT / "tests" / name).is_file()] == [], listed
    assert untested == [], (
        f"without a test file of the same path under tests/, or a line in {listed}"
    )
    assert idle == [], f"lines of {listed} for modules that are gone, or have a test file"


def test_tests_mirror_the_tree() -> None:
    """A folder of tests is for the folder of that name, and the test of a pass lies in its own."""
    helpers = {"support"}
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests")
        if folder.parts and folder.parts[0] not in helpers:
            homes = (ROOT / folder, ROOT / "src/intaglio" / folder)
            assert any(home.is_dir() for home in homes), f"{path} tests no folder of ours"
        name = path.name.removeprefix("test_")
        passes = [found.parent.name for found in (ROOT / "passes").glob(f"*/{name}")]
        if folder.parts[:1] == ("passes",) and passes:
            assert folder.name in passes, f"{path} belongs into {passes}"


def test_every_package_is_listed() -> None:
    """A package missing from the list would import here and be absent from the wheel."""
    found = {
        ".".join((package, *init.parent.relative_to(ROOT / folder).parts))
        for package, folder in SETUPTOOLS["package-dir"].items()
        for init in (ROOT / folder).rglob("__init__.py")
    }

    assert found == set(SETUPTOOLS["packages"])


# Folders whose files bear the names of what they command, compile or read.
MIRRORS = ("src/intaglio/cli/commands", "exporter/sources/low_bit_formats")


def declared(folder: Path) -> Iterable[str]:
    """The names of a folder's files, and of classes in them."""
    for path in folder.rglob("*.py"):
        place = path.relative_to(ROOT).parent.as_posix()
        if not path.stem.startswith("__") and place not in MIRRORS:
            yield path.name
        for each in ast.parse(path.read_text()).body:
            if isinstance(each, ast.ClassDef):
                yield f"class {each.name}"


def test_files_and_classes_have_names_of_their_own() -> None:
    """Whoever looks for a file or a class by its name finds that one alone.

    A plugin bears the name of its operator.  Systems (`models/`) name layers as their papers do.
    """
    folders = set(SETUPTOOLS["package-dir"].values()) - {"models"}
    found = Counter(name for folder in folders for name in declared(ROOT / folder))
    found.subtract(f"{name}.py" for name in plugins())

    assert {name for name, count in found.items() if count > 1} == set()
