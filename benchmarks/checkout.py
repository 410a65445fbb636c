"""Import intaglio from the checkout alone, where PyTorch and Triton are and nothing is installed.

On a machine with a GPU there may be no package index.  The folders of the checkout are linked into
a package as pyproject.toml lays them out, and packages of ONNX, with which operators describe
themselves and which no kernel needs, are stood in for where they are missing.
"""

import importlib.util
import sys
import tempfile
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
DESCRIBING = ("onnx", "onnxscript")


class _Anything(ModuleType):
    """A module whose every name can be called, joined and iterated over, and gives the like."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(f"{self.__name__}.{name}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __or__(self, _: Any) -> Any:
        return self

    __ror__ = __or__

    def items(self) -> Any:
        return ()

    def __iter__(self) -> Any:
        return iter([self] * 16)  # as many inputs as any operator has


def use_checkout() -> None:
    """Make `import intaglio` find the checkout, unless it is installed."""
    if importlib.util.find_spec("intaglio") is not None:
        return
    folder = Path(tempfile.mkdtemp())
    layout = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = layout["package-dir"]
    (folder / "intaglio").mkdir()
    for path in (ROOT / places["intaglio"]).iterdir():
        (folder / "intaglio" / path.name).symlink_to(path)
    for package, place in places.items():
        if package != "intaglio":
            (folder / "intaglio" / package.rpartition(".")[2]).symlink_to(ROOT / place)
    sys.path.insert(0, str(folder))
    for name in DESCRIBING:
        if importlib.util.find_spec(name) is None:
            for module in (name, f"{name}.defs", f"{name}.parser", f"{name}.values"):
                sys.modules[module] = _Anything(module)
