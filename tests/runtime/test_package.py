"""The runtime as installed alone: nothing of an extra, and nothing loaded before its time."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from intaglio import runtime
from intaglio.runtime.session import Session

MakeBundle = Callable[..., Path]

BLOCK_EXTRAS = """
import sys
for name in ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors"):
    sys.modules[name] = None  # an import now raises ImportError
"""


def python(code: str, *arguments: object) -> str:
    """What a fresh interpreter prints when it runs `code`."""
    run = subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def test_importing_the_runtime_loads_no_engine() -> None:
    """What needs numpy or ONNX Runtime is imported when it is asked for."""
    code = "import sys, intaglio.runtime; print({'numpy', 'onnxruntime'} & set(sys.modules))"

    assert python(code) == "set()\n"


@pytest.mark.parametrize("name", runtime.__all__)
def test_every_exported_name_is_there(name: str) -> None:
    """Though it is only looked up by name."""
    assert getattr(runtime, name).__name__ == name


def test_what_is_held_says_what_it_is_in_one_short_line(make_bundle: MakeBundle) -> None:
    """None prints its arrays, its files or an address; the package lists its names alone."""
    root = make_bundle("static")
    bundle = runtime.Bundle.open(root)
    session = Session.load(bundle)
    session.step({"input_ids": np.array([[1, 2], [3, 4]])})
    with runtime.Streams(session, 2) as streams:
        found = [bundle, bundle.manifest, session, session.state.save(), streams]
        texts = [repr(each) for each in found]

    name = bundle.manifest.source["name"]
    assert texts == [
        f"Bundle({root.name!r}, main)",
        f"Manifest({name!r}, main)",
        f"Session({root.name!r}, ort, rows=2)",
        "Snapshot(rows=2, tokens=[2, 2])",
        f"Streams({root.name!r}, ort, rows=2)",
    ]
    assert dir(runtime) == sorted(runtime.__all__)


def test_another_name_is_an_attribute_error() -> None:
    """As in any module."""
    with pytest.raises(AttributeError, match="no attribute 'Sesion'"):
        runtime.__getattr__("Sesion")


def test_a_state_continues_in_another_process_without_any_extra(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """Bit for bit, in an interpreter where torch and onnx cannot be imported."""
    bundle = make_bundle("recurrent", "conv", "window", "static")
    session = Session.load(bundle, threads=1)
    session.step({"input_ids": [[1, 2, 3]]})
    session.state.save(tmp_path / "state.npz")
    expected = session.step({"input_ids": [[4, 5]]})["logits"]

    code = f"""{BLOCK_EXTRAS}
import numpy as np
from intaglio.runtime import Session
session = Session.load(sys.argv[1], threads=1)
session.state.restore(sys.argv[2])
np.save(sys.argv[3], session.step({{"input_ids": [[4, 5]]}})["logits"])
"""
    python(code, bundle, tmp_path / "state.npz", tmp_path / "logits.npy")

    assert np.array_equal(np.load(tmp_path / "logits.npy"), expected)


def test_nothing_is_printed_when_a_step_fails(make_bundle: MakeBundle) -> None:
    """ONNX Runtime logs to stderr by itself; here the exception alone speaks."""
    code = """
import sys
from intaglio.errors import InputError
from intaglio.runtime import Session
session = Session.load(sys.argv[1])
try:
    session.step({"input_ids": [[99]]})
except InputError:
    print("refused")
"""
    assert python(code, make_bundle("static")) == "refused\n"
