"""A module is built by the user's own factory, from a config in any of its spellings."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.factory import build_from_factory

CODE = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Config:
    width: int
    depth: int = 1

def by_keywords(width, depth=1):
    return nn.Linear(width, depth)

def by_mapping(config):
    return nn.Linear(config["width"], config["depth"])

def by_dataclass(config: Config):
    return nn.Linear(config.width, config.depth)

class Net(nn.Linear):
    def __init__(self, config: "Config"):
        super().__init__(config.width, config.depth)

def with_inputs(width, depth=1):
    return nn.Linear(width, depth), {"input": torch.ones(2, 3, width)}

def wrong_inputs(width, depth=1):
    return nn.Linear(width, depth), [1]

def broken(width, depth=1):
    return nn.Linear(width, undefined)

def number(width, depth=1):
    return 3
"""

Import = Callable[[str], Any]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with user code that no other test has imported."""
    package = tmp_path / "user_code"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(CODE)
    (package / "faulty.py").write_text("1 / 0")
    (package / "needy.py").write_text("import not_installed_anywhere")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "user_code"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "name", ["by_keywords", "by_mapping", "by_dataclass", "Net", "with_inputs"]
)
def test_a_factory_takes_its_config_in_the_form_it_declares(name: str) -> None:
    """As keywords, as one mapping, as one dataclass; a class is a factory, too."""
    path = list(sys.path)

    module, inputs = build_from_factory(f"user_code.nets:{name}", {"width": 5, "depth": 2})

    assert isinstance(module, nn.Linear)
    assert (module.in_features, module.out_features) == (5, 2)
    assert (inputs is not None) == (name == "with_inputs")
    assert sys.path == path


def test_import_from_goes_before_the_working_directory(folder: Path) -> None:
    """And the working directory is searched though a console script would not."""
    other = folder / "other" / "user_code"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    (other / "nets.py").write_text("from torch import nn\ndef make(): return nn.Identity()")

    module, _ = build_from_factory("user_code.nets:make", {}, [Path("other")])

    assert isinstance(module, nn.Identity)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("user_cod.nets:Net", "no module 'user_cod' in .* Say where it is with --import-from"),
        ("user_code.net:Net", r"no module 'user_code\.net'"),
        (
            "user_code.nets:Nett",
            "has no callable 'Nett', perhaps 'Net' .it has Config, by_keywords",
        ),
        ("user_code/nets.py:Net", "--model nets:Net --import-from user_code$"),
        ("user_code.faulty:Net", "Importing 'user_code.faulty' failed with ZeroDivisionError"),
        ("user_code.needy:Net", "Importing 'user_code.needy' failed: .*not_installed_anywhere"),
        ("user_code.nets:broken", "'user_code.nets:broken' raised NameError: .*'undefined'"),
        ("user_code.nets:number", "returned int; it should return a torch.nn.Module"),
        ("user_code.nets:wrong_inputs", "example inputs as list; they should be a dict"),
    ],
)
def test_a_factory_that_does_not_work_is_told(spec: str, message: str) -> None:
    """Each fault has its own sentence; the user's exception is quoted."""
    with pytest.raises(SourceError, match=message):
        build_from_factory(spec, {"width": 5, "depth": 2})


@pytest.mark.usefixtures("folder")
def test_a_config_that_does_not_fit_is_told_with_the_signature() -> None:
    """A misspelt key is seen beside the right one."""
    with pytest.raises(
        SourceError, match=r"takes \(width, depth=1\), the config has 'width', 'deep'"
    ):
        build_from_factory("user_code.nets:by_keywords", {"width": 5, "deep": 2})
    with pytest.raises(
        SourceError, match=r"raised TypeError: .*unexpected keyword argument 'deep'"
    ):
        build_from_factory("user_code.nets:by_dataclass", {"width": 5, "deep": 2})
