"""Peak memory of export, verify and a session, against the bytes of the weights.

    python benchmarks/export_memory.py [--quick] [--json]

A Llama-type model with random weights is generated and saved, then each command runs in a process
of its own.  What importing PyTorch and the engines takes is measured in a further process and
taken off, since it does not grow with the model.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from evidence import Row, run

from intaglio.models import find, save
from intaglio.models.llama import Config

LARGE = Config(
    vocab_size=32_000,
    hidden_size=2048,
    intermediate_size=5632,
    num_layers=11,
    num_heads=16,
    num_kv_heads=4,
)  # 624M parameters, 2.5 GB
SMALL = Config(
    vocab_size=8_000,
    hidden_size=1024,
    intermediate_size=2816,
    num_layers=8,
    num_heads=8,
    num_kv_heads=2,
)  # 107M parameters, 0.4 GB
STEPS = 8
PEAK, SHARED = 2.5, 1.02

CHILD = """
import json, sys
import intaglio.exporter.export, intaglio.exporter.proving.verify
from intaglio import export, verify
from intaglio.runtime import Session

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

what, source, bundle, steps = sys.argv[1:]
phases = []

def note(phase, done):
    phases.append((phase.partition(":")[0], peak()))

if what == "export":
    export(source, bundle, steps=int(steps), progress=note)
elif what == "verify":
    verify(bundle, source, steps=int(steps))
elif what == "session":
    import numpy
    session = Session.load(bundle)
    session.step({"input_ids": numpy.zeros((1, int(steps)), numpy.int64)})
print(json.dumps({"peak": peak(), "phases": phases}))
"""


def measure(quick: bool) -> list[Row]:
    """Rows for one model of 2.5 GB, or of 0.4 GB."""
    config = SMALL if quick else LARGE
    with tempfile.TemporaryDirectory() as folder:
        source, bundle = Path(folder) / "model.pt", Path(folder) / "bundle"
        module = find("llama").build(config)
        weights = sum(p.numel() for p in module.parameters()) * 4
        save(source, "llama", config, module)
        del module
        base, _ = _peak("import", source, bundle)
        rows = []
        for what in ("export", "verify", "session"):
            peak, phases = _peak(what, source, bundle)
            value = (peak - base) / weights
            rows.append(
                Row(
                    name=f"{what}: peak memory",
                    value=value,
                    unit="x weights",
                    target=f"<= {PEAK}",
                    holds=value <= PEAK,
                    note=", ".join(
                        f"until {name} {(at - base) / weights:.2f}" for name, at in phases
                    ),
                )
            )
        size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
        rows.append(
            Row(
                name="bundle with both graphs: size",
                value=size / weights,
                unit="x weights",
                target=f"<= {SHARED}",
                holds=size / weights <= SHARED,
                note=f"weights {weights / 1e9:.2f} GB",
            )
        )
    return rows


def _peak(what: str, source: Path, bundle: Path) -> tuple[int, list[tuple[str, int]]]:
    """Peak bytes of a process that does `what`, and the peak until each phase began."""
    arguments = [sys.executable, "-c", CHILD, what, str(source), str(bundle), str(STEPS)]
    out = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    found = json.loads(out.splitlines()[-1])
    first: dict[str, int] = {}
    for phase, peak in found["phases"]:
        first.setdefault(phase, peak)
    return found["peak"], list(first.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(__doc__, measure)
