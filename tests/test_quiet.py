"""Libraries are kept off the terminal; what a user's module prints is not."""

import contextlib
import io
import logging
import pprint
import warnings
from types import ModuleType

import pytest

from intaglio.quiet import heard, quiet

SPEAK = "def speak(text):\n    print(text)\n"


def speaker(name: str) -> ModuleType:
    """A module of that name, with a function that prints."""
    made = ModuleType(name)
    exec(SPEAK, made.__dict__)
    return made


def test_what_a_module_of_the_users_prints_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    """By itself, by the standard library, and from within a library that calls it."""
    mine = speaker("models.mine")
    with quiet():
        print("by itself")  # noqa: T201
        mine.speak("in a module")
        pprint.pp(["by pprint"])
        with contextlib.redirect_stdout(io.StringIO()) as kept:
            print("elsewhere")  # noqa: T201

    assert capsys.readouterr().out.splitlines() == ["by itself", "in a module", "['by pprint']"]
    assert kept.getvalue() == "elsewhere\n"


@pytest.mark.parametrize("name", ["torch.onnx._internal", "transformers", "onnxscript.x"])
def test_what_libraries_say_is_not(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        speaker(name).speak("progress of an exporter")
        logging.getLogger(name).error("a log")
        warnings.warn("a warning", stacklevel=1)

    assert capsys.readouterr() == ("", "")


def test_for_those_who_look_for_a_fault_everything_is_heard(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with heard(), quiet():
        speaker("torch.onnx").speak("diagnostics")
        with pytest.warns(UserWarning, match="a warning"):
            warnings.warn("a warning", stacklevel=1)

    assert capsys.readouterr().out == "diagnostics\n"
