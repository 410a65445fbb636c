"""LongMem: the time of a segment with a full bank of 65,536 tokens, and with an empty one.

At more than 100M parameters, one row.  Both are restored from states that differ in the bank alone:
zeros and a count of none, or random keys and values and a count of all.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from evidence import Row, run

from intaglio.exporter.export import export
from intaglio.models import longmem
from intaglio.runtime.session import Session


def bank(folder: Path, quick: bool) -> list[Row]:
    """A segment with an empty bank, and with a full one."""
    large = {"hidden_size": 768, "num_heads": 12, "num_layers": 12, "retrieval_layer": 11}
    small = {"hidden_size": 64, "num_heads": 4, "num_layers": 4, "retrieval_layer": 3}
    sizes = small if quick else large
    capacity = 4096 if quick else 65536
    config = longmem.Config(vocab_size=1024, segment=64, capacity=capacity, retrieved=64, **sizes)
    torch.manual_seed(0)
    module = longmem.build(config).eval().requires_grad_(requires_grad=False)
    count = sum(weight.numel() for weight in module.parameters())
    given = longmem.inputs(config, 2, 0, torch.Generator().manual_seed(0))
    export(module, folder / "longmem", inputs=given, axes=longmem.axes(config), verify=False)
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 1024, (1, config.segment))
    session = Session.load(folder / "longmem")
    session.step({"input_ids": ids})
    begun = session.state.save()
    nothing = {name: np.zeros_like(array) for name, array in begun.arrays.items()}
    much = {
        name: np.full_like(array, config.chunks)
        if array.dtype == np.int64
        else generator.standard_normal(array.shape, dtype=np.float32)
        for name, array in begun.arrays.items()
    }
    states = [replace(begun, arrays=arrays) for arrays in (nothing, much)]
    times = []
    for _ in range(4 if quick else 9):
        for state in states:
            session.state.restore(state)
            start = time.perf_counter()
            session.step({"input_ids": ids})
            times.append(time.perf_counter() - start)
    times = times[2:]
    found = statistics.median(b / a for a, b in zip(times[::2], times[1::2], strict=True))
    return [
        Row(
            name=f"LongMem, {count / 1e6:.0f}M parameters: a segment of 64 tokens with a full bank "
            f"of {config.capacity:,} tokens : with an empty one",
            value=found,
            unit="ratio",
            target="<= 1.5",
            holds=found <= 1.5,
            note=f"{statistics.median(times[::2]):.3f} s with an empty one",
        )
    ]


def measure(quick: bool) -> list[Row]:
    """The one row."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        return bank(Path(name), quick)


if __name__ == "__main__":
    run(__doc__, measure)
