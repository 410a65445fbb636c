"""What is read from the source is what is imported, and reading it costs no PyTorch."""

import subprocess
import sys

from intaglio.cli import catalogue
from intaglio.cli.frame import app
from intaglio.cli.known_names import known, models_like, passes_like
from intaglio.cli.systems import SYSTEMS

BLOCKED = "torch onnx onnx_ir onnxscript triton onnxruntime matplotlib transformers"
PROGRAM = f"""
import sys
for name in {BLOCKED.split()!r}:
    sys.modules[name] = None
from intaglio.cli import main
sys.argv = ["intaglio", "list"]
main()
"""


def test_names_and_summaries_are_those_of_the_registries() -> None:
    found = known()

    for kind in ("passes", "models"):
        entries = getattr(catalogue, kind)()
        assert found[kind] == [{k: each[k] for k in ("name", "summary")} for each in entries]
    for kind in ("ops", "targets", "kernels"):
        names = {entry["name"] for entry in getattr(catalogue, kind)()}
        assert {entry["name"] for entry in found[kind]} == names


def test_systems_are_used_by_names_that_are_there() -> None:
    """And each model is one of a system, but for the transformer that others are compared with."""
    names = {f"{kind} {entry['name']}" for kind, noun in (("model", "models"), ("pass", "passes"))
             for entry in known()[noun]}  # fmt: skip
    names |= {f"command {command.name}" for command in app.registered_commands}
    used = [each for system in SYSTEMS for each in system.used]
    assert set(used) <= names
    assert len(used) == len(set(used))
    assert {n for n in names if n.startswith("model ")} - set(used) == {"model llama"}


def test_list_runs_without_pytorch_and_onnx() -> None:
    run = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True)

    assert (run.returncode, run.stderr) == (0, "")
    for name in ("gated-deltanet", "statefulize", "linear_attention", "trt"):
        assert name in run.stdout


def test_a_shell_completes_names() -> None:
    assert models_like("gated-d") == ["gated-deltanet"]
    assert passes_like("gpt") == ["gptq"]
