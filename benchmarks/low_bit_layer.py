"""One product of few bits, 4096 x 4096 at one row, whose weights come from memory.

    python benchmarks/low_bit_layer.py [--quick] [--json]

Graphs of distinct layers in a row, their weights together at least four times the last-level cache,
lowered as any export is, offsets included.  One thread; seconds are those of the thread, a layer,
each kind once a round; ratios are medians over rounds.  Activations are rounded to 8 bits, or taken
in two parts of 8 bits, which is exact but for 1e-4, or looked up in tables of 8 bits.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from evidence import Row, ratio, run
from onnx_ir.passes import common

from intaglio.passes.base import Context
from intaglio.passes.graph import add_initializer
from intaglio.passes.low_bit import LowBitWeight, add_weight
from intaglio.passes.lower.ort_low_bit import Accuracy, OrtLowBit
from intaglio.passes.own_ops import define
from intaglio.runtime.ort.lookup_tables import OPTION

SIZE = 4096
FEWEST, TIMES_CACHE, LARGEST_CACHE = 16, 4, 32 << 20  # where the system does not tell its cache
KINDS: dict[str, tuple[int, int, Accuracy]] = {  # bits, group and how activations are taken
    "fp32": (32, SIZE, "exact"),
    "8 bits": (8, 64, "fast"),
    "4 bits": (4, 64, "fast"),
    "4 bits, groups of 128": (4, 128, "fast"),
    "2 bits": (2, 64, "fast"),
    "2 bits, groups of 128": (2, 128, "fast"),
    "2 bits, groups of 32": (2, 32, "fast"),
    "2 bits, looked up": (2, 64, "fast"),
    "2 bits, groups of 128, looked up": (2, 128, "fast"),
    "2 bits, groups of 32, looked up": (2, 32, "fast"),
    "8 bits, in two parts": (8, 64, "fine"),
    "4 bits, in two parts": (4, 64, "fine"),
    "2 bits, in two parts": (2, 64, "fine"),
    "2 bits, groups of 128, in two parts": (2, 128, "fine"),
}
PARTS, TABLES = ", in two parts", ", looked up"
# Name of the row, ours, theirs, and how many times faster ours should be.
TARGETS = (
    ("2 bits, groups of 128, to fp32", "2 bits, groups of 128", "fp32", 7.0),
    ("2 bits, groups of 128, to 4 bits", "2 bits, groups of 128", "4 bits, groups of 128", 1.2),
    ("2 bits, groups of 64, to fp32", "2 bits", "fp32", 5.5),
    ("2 bits, groups of 64, to 4 bits", "2 bits", "4 bits", 1.1),
)

MISSED = (
    "A product of 2 bits reads a tenth of the bytes but unpacks every code, for which AVX2 takes "
    "more instructions than AVX-512 with VNNI, where 8.3 was measured."
)

Array = npt.NDArray[Any]


def measure(quick: bool) -> list[Row]:
    """Time of a layer of each kind, and the ratios that have targets."""
    cache = last_level_cache()
    with tempfile.TemporaryDirectory() as folder:
        made = {
            name: _graph(Path(folder) / name, *kind, cache, tables=name.endswith(TABLES))
            for name, kind in KINDS.items()
        }
    sizes = {name: size for name, (_, _, size) in made.items()}
    calls = {name: (call, layers) for name, (call, layers, _) in made.items()}
    times = _rounds(calls, 5 if quick else 20)
    smallest = min(sizes.values())
    found = [
        Row(name="4096 x 4096: last-level cache", value=cache / 2**20, unit="MiB"),
        Row(name="4096 x 4096: fewest bytes of weights under test", value=smallest / 2**20,
            unit="MiB", target=f">= {TIMES_CACHE} caches", holds=smallest >= TIMES_CACHE * cache),
    ]  # fmt: skip
    for name, (_, layers) in calls.items():
        note = f"{layers} distinct layers, {sizes[name] / 2**20:.0f} MiB"
        value = 1e3 * median(times[name])
        found.append(Row(name=f"4096 x 4096, one row: {name}", value=value, unit="ms", note=note))
    for name, ours, theirs, least in TARGETS:
        value = ratio(times[theirs], times[ours])
        found.append(
            Row(name=f"4096 x 4096, one row: {name}", value=value, unit="times as fast",
                target=f">= {least}", holds=value >= least, against=theirs,
                note="" if value >= least else MISSED)
        )  # fmt: skip
    for name in (name for name in KINDS if name.endswith(PARTS)):
        one = name.removesuffix(PARTS)
        value = ratio(times[name], times[one])
        found.append(Row(name=f"4096 x 4096, one row: {name}, to one part", value=value,
                         unit="times the time", against=one))  # fmt: skip
    for name in (name for name in KINDS if name.endswith(TABLES)):
        plain = name.removesuffix(TABLES)
        for other in dict.fromkeys((plain, "2 bits, groups of 128", "4 bits")):
            value = ratio(times[other], times[name])
            found.append(Row(name=f"4096 x 4096, one row: {name}, to {other}", value=value,
                             unit="times as fast", against=other))  # fmt: skip
    return found


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20}[text[-1]])
    return max(sizes, default=LARGEST_CACHE)


def _rounds(
    calls: Mapping[str, tuple[Callable[[], object], int]], rounds: int
) -> dict[str, Sequence[float]]:
    """Seconds of a layer, of each kind in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        for name, (call, layers) in calls.items():
            start = time.thread_time()
            call()
            if index:
                times[name].append((time.thread_time() - start) / layers)
    return {**times}


def _graph(
    path: Path, bits: int, group: int, accuracy: Accuracy, cache: int, *, tables: bool
) -> tuple[Callable[[], object], int, int]:
    """A call of layers in a row, how many they are, and the bytes of their weights."""
    random = np.random.default_rng(0)
    first = _layer(random, bits, group)
    size = sum(array.nbytes for array in first if array is not None)
    layers = max(FEWEST, -(-TIMES_CACHE * cache // size))
    x = ir.Value(
        name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", "time", SIZE])
    )
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="layers")
    model = ir.Model(graph, ir_version=10)
    y = x
    for index in range(layers):
        y = _add(graph, y, _layer(random, bits, group), f"layer{index}", bits, group)
    y.name = "y"
    graph.outputs.append(y)
    if bits < 32:
        define(model)
        OrtLowBit(accuracy=accuracy).run(model, Context())
        common.RemoveUnusedNodesPass()(model)
    path.mkdir()
    ir.save(model, path / "model.onnx", external_data="model.data")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if tables:
        options.add_session_config_entry(OPTION, "1")
    session = onnxruntime.InferenceSession(str(path / "model.onnx"), options)
    feed = {"x": random.standard_normal((1, 1, SIZE)).astype(np.float32)}
    for file in path.iterdir():
        file.unlink()
    return lambda: session.run(None, feed), layers, layers * size


def _layer(random: np.random.Generator, bits: int, group: int) -> tuple[Array, ...]:
    """A float weight, or packed codes, scale and offset, that keep the size of their input."""
    if bits == 32:
        return (random.standard_normal((SIZE, SIZE), np.float32) / SIZE**0.5,)
    packed = random.integers(0, 256, (SIZE, SIZE // group, group * bits // 8), np.uint8)
    scale = np.full((SIZE, SIZE // group), 3.0 / (2**bits * SIZE**0.5), np.float32)
    return packed, scale, random.uniform(-0.3, 0.3, scale.shape).astype(np.float32) * scale


def _add(
    graph: ir.Graph, x: ir.Value, arrays: tuple[Array, ...], name: str, bits: int, group: int
) -> ir.Value:
    if bits == 32:
        node = ir.node("MatMul", [x, add_initializer(graph, name, arrays[0])])
    else:
        packed, scale, offset = arrays
        weight = LowBitWeight(
            packed=packed, scale=scale, offset=offset, K=SIZE, bits=bits, group=group
        )
        sizes = {"K": SIZE, "N": SIZE, "bits": bits, "group": group}
        values = add_weight(graph, name, weight)
        node = ir.node("AffineLowBitMatMul", [x, *values], sizes, domain="intaglio")
    y = node.outputs[0]
    y.type, y.shape, y.name = x.type, x.shape, f"{name}.y"
    graph.append(node)
    return y


if __name__ == "__main__":
    run(__doc__, measure)
