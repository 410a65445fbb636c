"""`make gpu` as far as it goes without a GPU: every kernel compared, every time taken somehow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from intaglio.trt_plugins import NAMES

CHILD = Path(__file__).with_name("gpu_child.py")


def test_kernels_are_compared_and_timed_and_what_fails_ends_nothing_else(
    kernel_cache: Path,
) -> None:
    """In the interpreter and on the emulated GPU, in fp16, and at small sizes."""
    pytest.importorskip("triton")
    command = [sys.executable, str(CHILD), str(kernel_cache)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = {row["name"]: row for row in json.loads(run.stdout)}

    for name in NAMES:
        assert rows[f"{name}, float16: error"]["holds"], name
        assert rows[f"{name}, float16: enqueue"]["holds"], name
        assert rows[f"{name}, float16: PTX, tactic 1"]["holds"], name
    assert rows["before"]["holds"] is None
    fault = rows["broken: fails"]
    assert (fault["holds"], fault["note"]) == (False, "ValueError: of the test")
    assert [row["holds"] for row in rows.values() if row["target"] == "runs"] == [False]
    assert {"step", "prefill", "product"} <= rows.keys()
