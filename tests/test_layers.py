"""No folder imports what docs/architecture.md says it must not, function-level imports included."""

import ast
import functools
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
    "package-dir"
]
CORE = {
    "intaglio.call_ends",
    "intaglio.errors",
    "intaglio.exchange",
    "intaglio.graph_keys",
    "intaglio.graphs",
    "intaglio.keywords",
    "intaglio.spelling",
    "intaglio.operators",
    "intaglio.places",
    "intaglio.quiet",
    "intaglio.signature",
    "intaglio.state",
    "intaglio.version",
    "intaglio.whole_files",
}

# What each room may import of ours; those in LAZY may import the rest inside functions.
LAZY = {"intaglio", "intaglio.cli"}
ALLOWED = {
    "intaglio": {"intaglio"},
    "intaglio.cli": {"intaglio.cli", "intaglio.jobs", "intaglio.runtime"},
    "intaglio.jobs": {"intaglio.jobs"},
    "intaglio.ops": {"intaglio.ops"},
    "intaglio.models": {"intaglio.models", "intaglio.ops"},
    "intaglio.passes": {"intaglio.passes", "intaglio.jobs", "intaglio.ops"},
    "intaglio.exporter": {
        "intaglio.exporter",
        "intaglio.jobs",
        "intaglio.models",
        "intaglio.ops",
        "intaglio.passes",
        "intaglio.runtime",
        "intaglio.trt_plugins",
    },
    "intaglio.runtime": {"intaglio.runtime"},
    "intaglio.trt_plugins": {"intaglio.trt_plugins", "intaglio.ops", "intaglio.runtime"},
    "intaglio.report": {"intaglio.report", "intaglio.runtime"},
}
# What operators mean stands on what is declared of them, and on nothing else of ours.
OPS_KNOW = {"intaglio.errors", "intaglio.operators", "intaglio.signature"}

# What `pip install intaglio` does not bring.
EXTRAS = set(
    "matplotlib onnx onnx_ir onnxscript ray "
    "safetensors tokenizers torch transformers triton".split()
)


def room(module: str) -> str:
    """The room a module of ours lives in."""
    if module == "intaglio.__main__":
        return "intaglio.cli"
    first_two = ".".join(module.split(".")[:2])
    return first_two if first_two in ALLOWED else "intaglio"


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of ours with its file."""
    for package, folder in ROOMS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *(part for part in parts if part != "__init__"))), path


FILES = dict(modules())


def for_types_alone(node: ast.AST) -> bool:
    """Whether a statement is for type checkers: nothing in it is imported when it runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@functools.cache
def parsed(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


@functools.cache
def imports(module: str, *, lazy: bool) -> frozenset[str]:
    """Absolute names of what a module imports; without `lazy`, when it is itself imported."""
    found: set[str] = set()
    pending: list[ast.AST] = [parsed(module)]
    while pending:
        node = pending.pop()
        if not lazy and (isinstance(node, ast.FunctionDef) or for_types_alone(node)):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = base_of(module, node)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else base for name in names}
        if not isinstance(node, ast.expr):  # nothing is imported within one
            pending.extend(ast.iter_child_nodes(node))
    return frozenset(found)


def names_from(module: str) -> set[tuple[str, str]]:
    """The names that a module imports from ours, each with what it imports them from."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.ImportFrom) and ours({base_of(module, node)}):
            found |= {(base_of(module, node), alias.name) for alias in node.names}
    return found


def base_of(module: str, node: ast.ImportFrom) -> str:
    """The absolute name of what a statement imports from."""
    if not node.level:
        return node.module or ""
    package = module if FILES[module].stem == "__init__" else module.rpartition(".")[0]
    above = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join((*above, *filter(None, [node.module])))


def ours(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "intaglio"}


def of_rooms(*rooms: str) -> list[str]:
    found = [module for module in FILES if room(module) in rooms]
    assert found
    return found


def extras(module: str, *, lazy: bool) -> list[str]:
    """What an extra brings, of what a module imports."""
    found = {name.split(".")[0] for name in imports(module, lazy=lazy)} & EXTRAS
    return [f"{module} imports {name}" for name in sorted(found)]


def test_a_room_imports_only_what_it_may_know() -> None:
    """Imports of ours stay within the room, the core, and the rooms allowed to it."""
    wrong = []
    for module in FILES:
        here = room(module)
        shared = OPS_KNOW if here == "intaglio.ops" else CORE
        known = shared | ALLOWED[here]
        wrong += [
            f"{module} imports {name}"
            for name in ours(imports(module, lazy=here not in LAZY))
            if name not in known and room(name) not in ALLOWED[here]
        ]

    assert wrong == []


def test_what_is_private_stays_in_its_folder() -> None:
    """No file imports a `_private` name of any other, or a `_private` file of another folder."""
    wrong = []
    for module, path in FILES.items():
        own = module if path.stem == "__init__" else module.rpartition(".")[0]
        for name in ours(imports(module, lazy=True)):
            folder, _, last = name.rpartition(".")
            if is_private(last) and folder != own:
                wrong.append(f"{module} imports {name} of another folder")
        for file, name in names_from(module):
            if f"{file}.{name}" not in FILES and is_private(name):
                wrong.append(f"{module} imports the private name {name} of {file}")

    assert wrong == []


def is_private(part: str) -> bool:
    return part.startswith("_") and not part.endswith("__")


def test_files_of_the_exporter_and_of_passes_do_not_import_each_other_in_a_circle() -> None:
    """Contracts stand below what uses them, types included; time and its rules are one thing."""
    left = {
        module: imports(module, lazy=True)
        for module in FILES
        if room(module) in ("intaglio.exporter", "intaglio.passes")
        and FILES[module].stem != "__init__"
        and not module.startswith("intaglio.passes.analysis.")
    }
    while free := [module for module, names in left.items() if not names & left.keys()]:
        for module in free:
            del left[module]

    assert sorted(left) == []


# The stages of an export, and which of them each one may import: those before it.  What is proven
# and what is written do not know each other; export.py, above them all, carries results across.
STAGES = {
    "options": {"options"},
    "sources": {"options", "sources"},
    "tracing": {"options", "sources", "tracing"},
    "proving": {"options", "sources", "tracing", "proving"},
    "writing": {"options", "sources", "tracing", "writing"},
}


def test_a_stage_of_the_exporter_imports_only_those_before_it() -> None:
    """Data flows from sources through tracing to what is proven and written, never back."""
    wrong = []
    for module in of_rooms("intaglio.exporter"):
        stage = module.split(".")[2] if module.count(".") > 2 else ""
        if stage not in STAGES:
            continue  # the story on top
        wrong += [
            f"{module} imports {name}"
            for name in imports(module, lazy=True)
            if name.startswith("intaglio.exporter.") and name.split(".")[2] not in STAGES[stage]
        ]

    assert wrong == []


def circles(arrows: Mapping[str, Iterable[str]]) -> Iterator[set[str]]:
    """Every set of several modules that reach each other."""
    reach: dict[str, set[str]] = {}
    for module in arrows:
        found, pending = set[str](), [*arrows[module]]
        while pending:
            name = pending.pop()
            if name not in found:
                found.add(name)
                pending.extend(arrows[name])
        reach[module] = found
    told: set[str] = set()
    for module, found in reach.items():
        if module in found and module not in told:
            together = {name for name in found if module in reach[name]}
            told |= together
            yield together


def test_circles_are_found() -> None:
    """Of two modules, and of three through a fourth; whoever only leads into one is in none."""
    pairs = {"a": "b", "b": "a", "c": "d", "d": "ef", "e": "c", "f": "d", "g": "ah", "h": ""}

    assert list(circles(pairs)) == [{"a", "b"}, {"c", "d", "e", "f"}]


def test_no_module_is_in_a_circle_of_imports() -> None:
    """Contracts stand below what fulfils them, in every room; imports for types alone count."""
    arrows = {module: imports(module, lazy=True) & FILES.keys() for module in FILES}
    found = [sorted(circle) for circle in circles(arrows)]

    assert not found


def test_the_runtime_never_imports_an_extra() -> None:
    """No file of the runtime names a package that only an extra brings, not even in a function."""
    runtime = of_rooms("intaglio.runtime")

    assert [wrong for module in runtime for wrong in extras(module, lazy=True)] == []


def test_only_a_backend_knows_its_library() -> None:
    """ONNX Runtime in `runtime/ort`; the libraries of TensorRT are looked up by name."""
    wrong = []
    for module in of_rooms("intaglio.runtime"):
        found = {name.split(".")[0] for name in imports(module, lazy=True)}
        if "onnxruntime" in found and not module.startswith("intaglio.runtime.ort."):
            wrong.append(f"{module} imports onnxruntime")
        wrong += [
            f"{module} imports {x}" for x in ("tensorrt", "tensorrt_rtx", "cuda") if x in found
        ]

    assert wrong == []


def test_core_and_command_line_import_extras_only_when_needed() -> None:
    """The façade and the commands load without any extra."""
    lazy = of_rooms(*LAZY)

    assert [wrong for module in lazy for wrong in extras(module, lazy=False)] == []


def test_command_line_and_runtime_load_nothing_of_an_extra() -> None:
    """Importing them leaves torch, onnx and the like unloaded, through whatever they import."""
    code = (
        "import sys, intaglio.cli.stream, intaglio.runtime.session\n"
        f"print(*sorted({EXTRAS!r} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)

    assert (run.returncode, run.stderr, run.stdout.strip()) == (0, "", "")


@pytest.mark.parametrize("folder", sorted(set(ROOMS.values()) - {"src/intaglio"}))
def test_a_root_folder_refuses_to_be_a_top_level_package(folder: str) -> None:
    """With the root on sys.path, `import models` fails and names the package to import."""
    run = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True
    )

    assert run.returncode == 1
    assert f"ImportError: imported as '{folder}': use intaglio.{folder}" in run.stderr
