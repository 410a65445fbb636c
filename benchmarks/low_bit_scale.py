"""Quantizing 100M parameters by GPTQ: peak memory, progress, and going on after a kill.

    python benchmarks/low_bit_scale.py [--quick] [--json]

A Llama-type model with random weights is exported by a process of its own, which gets SIGKILL
once half of the groups of layers that read one input are finished; a second process goes on.  What
it redid shows in the files of the finished layers: one that is made again is a new file.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from evidence import Row, run

from intaglio.models import find, save
from intaglio.models.llama import Config

LARGE = Config(
    vocab_size=2048,
    hidden_size=1536,
    intermediate_size=4096,
    num_layers=4,
    num_heads=12,
    num_kv_heads=4,
)  # 104M parameters
SMALL = Config(
    vocab_size=2048,
    hidden_size=512,
    intermediate_size=1408,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
)
INPUTS = 4  # of a block: of queries, keys and values; of the output; of gate and up; of down
ROWS, LENGTH = 16, 128  # tokens to calibrate with
PASS = "gptq:bits=2,group=64,clip=true"
MOST = 8.0  # GB

CHILD = """
import sys
import intaglio

def note(phase, done):
    lines = open("/proc/self/status").read().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    print(peak, f"{phase} {done}", flush=True)

source, calib, work, out, step = sys.argv[1:]
intaglio.export(source, out, passes=[step], calib=calib, work=work, ort_accuracy="fast",
                verify=False, progress=note)
note("end", 1.0)
"""


def measure(quick: bool) -> list[Row]:
    """Rows for one model, of 17M parameters if `quick`."""
    return interrupted(quick, PASS, INPUTS)


def interrupted(quick: bool, step: str, inputs: int) -> list[Row]:
    """Rows of a pass that finishes `inputs` files of results for each block."""
    config = SMALL if quick else LARGE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module = find("llama").build(config)
        count = sum(parameter.numel() for parameter in module.parameters())
        save(folder / "model.pt", "llama", config, module)
        del module
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (ROWS, LENGTH))
        np.savez(folder / "calib.npz", input_ids=ids)
        work, wanted = folder / "work", config.num_layers * inputs
        child = _start(folder, step)
        while child.poll() is None and len(list(work.glob("*.npz"))) < wanted // 2:
            time.sleep(0.02)
        child.kill()
        first = _peaks(child)
        finished = {path: path.stat() for path in work.glob("*.npz")}
        start = time.perf_counter()
        again = _start(folder, step)
        second = _peaks(again)
        seconds = time.perf_counter() - start
        kept = {path: path.stat() for path in work.glob("*.npz")}
    if child.returncode != -signal.SIGKILL or again.returncode or len(kept) != wanted:
        raise SystemExit(f"killed: {child.returncode}, went on: {again.returncode}, {len(kept)}")
    redone = sum(_file(stat) != _file(kept[path]) for path, stat in finished.items())
    peak = max(*first.values(), *second.values()) / 1e6
    told = [line for line in (*first, *second) if f"{step.partition(':')[0]} layers." in line]
    return [
        Row(name="peak memory", value=peak, unit="GB", target=f"< {MOST:.0f}", holds=peak < MOST,
            note=f"{count:,} parameters, {ROWS * LENGTH} tokens, {step}"),
        Row(name="finished layers that were redone", value=redone, unit="layers", target="0",
            holds=redone == 0, note=f"killed when {len(finished)} of {wanted} were finished"),
        Row(name="layers whose progress was told", value=len(set(told)), unit="layers",
            target=f"{wanted}", holds=len(set(told)) == wanted, note=f"such as {told[0]!r}"),
        Row(name="the second half", value=seconds, unit="s",
            note="loading, tracing, lowering and writing included"),
    ]  # fmt: skip


def _start(folder: Path, step: str) -> subprocess.Popen[str]:
    names = ("model.pt", "calib.npz", "work", "bundle")
    arguments = [sys.executable, "-P", "-c", CHILD, *(str(folder / name) for name in names), step]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def _peaks(child: subprocess.Popen[str]) -> dict[str, int]:
    """What the child told of its progress, and its peak memory in kB by then."""
    told, _ = child.communicate()
    parts = (line.partition(" ") for line in told.splitlines())
    return {what: int(peak) for peak, _, what in parts}


def _file(found: os.stat_result) -> tuple[int, int]:
    return found.st_ino, found.st_mtime_ns


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(__doc__, measure)
