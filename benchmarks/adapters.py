"""Adapters: fused, switched and parallel agree, and 1,000 of them in one batch against a loop.

The loop serves one row after the other: it gives the session the row's adapter, and steps.  Steps
alone are measured as well, of sessions that have their adapters already.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from evidence import Row, run

from intaglio import export
from intaglio.exporter.sources.load import load_source
from intaglio.models import find, llama, save
from intaglio.runtime import Session
from intaglio.runtime.adapters import Adapter, chosen

LIMIT = 1e-5
FASTER = 20.0
SHAPES = {"0.7M": (128, 288, 4)}
SLICES = 8  # channels of each layer that an adapter changes


def measure(quick: bool) -> list[Row]:
    """All rows, for adapters of S2FT and of LoRA."""
    torch.set_num_threads(1)
    count = 100 if quick else 1000
    rows = []
    for name, shape in SHAPES.items():
        for kind in ("S2FT", "LoRA"):
            with tempfile.TemporaryDirectory() as folder:
                rows += _of(Path(folder), f"{name}, {kind}", shape, kind, count)
    return rows


def _of(folder: Path, name: str, shape: tuple[int, int, int], kind: str, count: int) -> list[Row]:
    base, files = _write(folder, shape, kind, count)
    fused = export(
        base, folder / "fused", adapter={"0": files["0"]}, adapters="fused", verify=False
    )
    few = dict(list(files.items())[:2])
    switched = export(base, folder / "switched", adapter=few, adapters="switched", verify=False)
    held = export(base, folder / "parallel", adapter=files, adapters="parallel", verify=False)
    ids = np.random.default_rng(0).integers(0, 256, (count, 6))
    wanted = _open(fused.out).step({"input_ids": ids[:1, :3]})["logits"]
    one = _open(switched.out)
    one.condition(chosen(one.graph, "0"))
    many = _open(held.out)
    many.condition({"adapter": 1 + np.arange(count)})
    all_rows = many.step({"input_ids": ids[:, :3]})["logits"]
    apart = {
        "switched": _apart(one.step({"input_ids": ids[:1, :3]})["logits"], wanted),
        "parallel": _apart(all_rows[:1], wanted),
    }
    found = [
        Row(name=f"{name}: {way} : fused, largest difference", value=value, unit="of the largest",
            target=f"<= {LIMIT:g}", holds=value <= LIMIT)
        for way, value in apart.items()
    ]  # fmt: skip
    worst, steps, requests = _loop(held.out, ids, all_rows)
    batch = _fastest(lambda: many.step({"input_ids": ids[:, 3:4]}))

    def whole() -> None:
        many.state.reset()
        many.condition({"adapter": 1 + np.arange(count)})
        many.step({"input_ids": ids[:, :1]})

    request = _fastest(whole)
    found.append(
        Row(name=f"{name}: {count} adapters in one batch : one by one, difference", value=worst,
            unit="of the largest", target=f"<= {LIMIT:g}", holds=worst <= LIMIT)
    )  # fmt: skip
    ratio = requests / request
    found.append(
        Row(name=f"{name}: adapter given and first token, loop : batch", value=ratio, unit="x",
            target=f">= {FASTER:g}" if count == 1000 else None,
            holds=ratio >= FASTER if count == 1000 else None,
            note=f"{request * 1e3:.0f} ms for all")
    )  # fmt: skip
    found.append(
        Row(name=f"{name}: later tokens, loop : batch", value=steps / batch, unit="x",
            note=f"{batch * 1e3:.0f} ms for all")
    )  # fmt: skip
    return found


def _write(
    folder: Path, shape: tuple[int, int, int], kind: str, count: int
) -> tuple[Path, dict[str, str]]:
    hidden, inner, layers = shape
    torch.manual_seed(0)
    config = llama.Config(hidden_size=hidden, intermediate_size=inner, num_layers=layers)
    base = folder / "base.pt"
    save(base, "llama", config, find("llama").build(config))
    digest = load_source(base).sha256
    files = {}
    for number in range(count):
        random = np.random.default_rng(number)

        def normal(*size: int, random: np.random.Generator = random) -> np.ndarray:
            return (random.standard_normal(size) * 0.05).astype(np.float32)

        parts = {}
        for layer in range(layers):
            up, down = (f"layers.{layer}.mlp.{each}_proj.weight" for each in ("up", "down"))
            if kind == "S2FT":
                chosen_ones = random.choice(inner, SLICES, replace=False)
                parts[up] = {"rows": chosen_ones, "row_delta": normal(SLICES, hidden)}
                parts[down] = {"columns": chosen_ones, "column_delta": normal(hidden, SLICES)}
            else:
                parts[up] = {"down": normal(4, hidden), "up": normal(inner, 4)}
                parts[down] = {"down": normal(4, inner), "up": normal(hidden, 4)}
        path = folder / f"{number}.npz"
        Adapter(base=digest, parts=parts).save(path)
        files[str(number)] = str(path)
    return base, files


def _loop(bundle: Path, ids: np.ndarray, wanted: np.ndarray) -> tuple[float, float, float]:
    """The largest difference, and seconds of all rows one by one: later steps, whole requests."""
    session, worst, steps, requests = _open(bundle), 0.0, 0.0, 0.0
    for row in range(len(ids)):
        session.state.reset()
        start = time.perf_counter()
        session.condition({"adapter": np.array([1 + row])})
        session.step({"input_ids": ids[row : row + 1, :1]})
        requests += time.perf_counter() - start
        session.state.reset()
        made = session.step({"input_ids": ids[row : row + 1, :3]})["logits"]
        worst = max(worst, _apart(made[0], wanted[row]))
        start = time.perf_counter()
        session.step({"input_ids": ids[row : row + 1, 3:4]})
        steps += time.perf_counter() - start
    return worst, steps, requests


def _fastest(call: object, times: int = 3) -> float:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()  # type: ignore[operator]
        found.append(time.perf_counter() - start)
    return min(found)


def _open(bundle: Path) -> Session:
    return Session.load(bundle, threads=1, capacity=16)


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


if __name__ == "__main__":
    run(__doc__, measure)
