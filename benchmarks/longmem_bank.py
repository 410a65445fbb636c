"""LongMem: the time of a segment as its bank fills up to 65,536 tokens, beside an empty one.

At more than 100M parameters, one row.  Steps begin from states that differ in the bank alone:
random keys and values in its last chunks and zeros before, and how many hold something.  The bank
has its full size from the start, so an empty one costs as much to copy and to search; a last row
is beside an engine whose bank has room for little.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from evidence import Row, ratio, run

from intaglio.exporter.export import export
from intaglio.models import longmem
from intaglio.runtime.session import Session

Array = npt.NDArray[Any]


def bank(folder: Path, quick: bool) -> list[Row]:
    """A segment with an empty bank, and with fuller ones."""
    large = {"hidden_size": 768, "num_heads": 12, "num_layers": 12, "retrieval_layer": 11}
    small = {"hidden_size": 64, "num_heads": 4, "num_layers": 4, "retrieval_layer": 3}
    sizes = small if quick else large
    capacity = 4096 if quick else 65536
    config = longmem.Config(vocab_size=1024, segment=64, capacity=capacity, retrieved=64, **sizes)
    torch.manual_seed(0)
    module = longmem.build(config).eval().requires_grad_(requires_grad=False)
    count = sum(weight.numel() for weight in module.parameters())
    shares, rounds = (0.0, 0.5, 1.0), 4 if quick else 7
    times = _times(_exported(module, folder / "large"), config, shares, rounds)
    what = f"LongMem, {count / 1e6:.0f}M parameters, a segment of {config.segment} tokens"
    little = replace(config, capacity=max(config.retrieved, config.capacity // 64))
    small_bank = longmem.build(little).eval().requires_grad_(requires_grad=False)
    least = _times(_exported(small_bank, folder / "little"), little, (1.0,), rounds)[1.0]
    rows = [
        Row(
            name=f"{what}: bank of {round(share * config.capacity):,} tokens : empty",
            value=ratio(times[share], times[0.0]),
            unit="ratio",
            target="<= 1.5" if share == 1 else None,
            holds=ratio(times[share], times[0.0]) <= 1.5 if share == 1 else None,
            note=f"{statistics.median(times[0.0]):.3f} s empty, with room for {config.capacity:,}",
        )
        for share in shares[1:]
    ]
    room = f"a full bank of {config.capacity:,} tokens : one of {little.capacity:,}"
    slower = statistics.median(times[1.0]) / statistics.median(least)
    return [*rows, Row(name=f"{what}: {room}", value=slower, unit="ratio",
                       note=f"{statistics.median(least):.3f} s with the latter")]  # fmt: skip


def _exported(module: longmem.LongMem, out: Path) -> Path:
    config = module.config
    given = longmem.inputs(config, 2, 0, torch.Generator().manual_seed(0))
    export(module, out, inputs=given, axes=longmem.axes(config), verify=False)
    return out


def _times(
    bundle: Path, config: longmem.Config, shares: tuple[float, ...], rounds: int
) -> dict[float, list[float]]:
    """Seconds of a segment, in turns, by the share of the bank that holds something."""
    generator = np.random.default_rng(0)
    ids = generator.integers(0, config.vocab_size, (1, config.segment))
    session = Session.load(bundle, threads=1)
    session.step({"input_ids": ids})
    begun = session.state.save()
    held = {
        name: generator.standard_normal(array.shape, dtype=np.float32)
        for name, array in begun.arrays.items()
        if array.dtype == np.float32
    }
    times: dict[float, list[float]] = {share: [] for share in shares}
    for turn in range(rounds):
        for share in shares:
            chunks = round(share * config.chunks)
            session.state.restore(replace(begun, arrays=_filled(begun.arrays, held, chunks)))
            start = time.thread_time()
            session.step({"input_ids": ids})
            if turn:
                times[share].append(time.thread_time() - start)
    return times


def _filled(
    arrays: Mapping[str, Array], held: Mapping[str, Array], chunks: int
) -> dict[str, Array]:
    """A bank whose last `chunks` hold something."""
    found = {}
    for name, array in arrays.items():
        found[name] = np.full_like(array, chunks) if name not in held else np.zeros_like(array)
        if name in held and chunks:
            found[name][:, :, -chunks:] = held[name][:, :, -chunks:]
    return found


def measure(quick: bool) -> list[Row]:
    """The rows."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        return bank(Path(name), quick)


if __name__ == "__main__":
    run(__doc__, measure)
