"""The names of everything that intaglio knows, read from its source: importing that costs PyTorch.

The files that list things, and those that declare them, have one form, to which
`tests/test_tree.py` holds them; `tests/cli/test_known_names.py` holds what is read to what is
imported.
"""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from intaglio.operators import SIGNATURES

TARGETS = {
    "ort": "ONNX Runtime on the CPU",
    "trt": "TensorRT, or TensorRT-RTX where it is not there",
}


def known() -> dict[str, list[dict[str, str]]]:
    """Name and summary of each operator, pass, model, target and kernel."""
    from intaglio.trt_plugins import NAMES

    states = {
        each.name: ", ".join(each.carried(state) for state in each.states) for each in SIGNATURES
    }
    return {
        "ops": [{"name": n, "summary": f"carries {s}" if s else ""} for n, s in states.items()],
        "passes": list(_passes()),
        "models": list(_models()),
        "targets": [{"name": name, "summary": said} for name, said in TARGETS.items()],
        "kernels": [{"name": name, "summary": ""} for name in NAMES],
    }


def passes_like(incomplete: str) -> list[str]:
    """Passes whose names begin so, for a shell to complete."""
    return _like("passes", incomplete)


def models_like(incomplete: str) -> list[str]:
    """Models whose names begin so, for a shell to complete."""
    return _like("models", incomplete)


def _like(kind: str, incomplete: str) -> list[str]:
    names = (entry["name"] for entry in known()[kind])
    return [name for name in names if name.startswith(incomplete)]


def _passes() -> Iterator[dict[str, str]]:
    for path, name in _listed("intaglio.passes", "PASSES"):
        classes = (each for each in _read(path).body if isinstance(each, ast.ClassDef))
        doc = next(ast.get_docstring(each) or "" for each in classes if each.name == name)
        yield {"name": path.stem.replace("_", "-"), "summary": doc.partition("\n")[0]}


def _models() -> Iterator[dict[str, str]]:
    for path, name in _listed("intaglio.models", "MODELS"):
        call = _value(_read(path), name)
        assert isinstance(call, ast.Call)
        given = {each.arg: each.value for each in call.keywords}
        yield {key: str(ast.literal_eval(given[key])) for key in ("name", "summary")}


def _listed(package: str, listing: str) -> Iterator[tuple[Path, str]]:
    """The file and the name of each entry of a tuple that the package's `__init__` holds."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    tree = _read(Path(spec.origin))
    files = {
        alias.name: Path(spec.origin).parent.joinpath(*each.module.split(".")).with_suffix(".py")
        for each in tree.body
        if isinstance(each, ast.ImportFrom) and each.level == 1 and each.module
        for alias in each.names
    }
    entries = _value(tree, listing)
    assert isinstance(entries, ast.Tuple)
    for entry in entries.elts:
        assert isinstance(entry, ast.Name)
        yield files[entry.id], entry.id


def _value(tree: ast.Module, name: str) -> ast.expr:
    """What a module assigns to a name."""
    for each in tree.body:
        targets = each.targets if isinstance(each, ast.Assign) else [getattr(each, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = getattr(each, "value", None)
            assert isinstance(value, ast.expr)
            return value
    raise AssertionError(name)


def _read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
