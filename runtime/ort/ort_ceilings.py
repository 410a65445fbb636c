"""What a processor reaches at best in ONNX Runtime: bytes of its memory, operations of products.

Products are of large matrices, in float32, and of weights of 4 bits with activations of 8, which
are computed in int8.  The memory is read by the sum of an array several times as large as the last
cache.  The graphs are written field by field
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), since a runtime has no package for it.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from intaglio.runtime import machine
from intaglio.runtime.kept_ceilings import kept
from intaglio.runtime.protobuf import field
from intaglio.runtime.work import INT8, Ceilings

SIZE = 1024  # of the weights, which are square
ROWS = 128  # for each thread: a round takes milliseconds, and some round is not disturbed
BLOCK = 32  # columns that share a scale
TIMES, LEAST, MOST = 4, 64 << 20, 512 << 20  # the last cache; bytes of an array
ROUNDS, SECONDS = 3, 0.2  # at least, of each
BUSY = 0.5  # load average per core from which what is measured is not kept

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_FLOAT, _UINT8 = 1, 2  # TensorProto.DataType
_INT = 2  # AttributeProto.AttributeType
_VERSIONS = {"": 13, "com.microsoft": 1}

Array = npt.NDArray[Any]


def of(threads: int | None) -> Ceilings:
    """The ceilings of this processor with so many threads, None as many as ONNX Runtime takes."""
    about = machine.describe()
    load = machine.load_average()
    key = ["cpu", about["processor"], about["cores"], threads, onnxruntime.__version__]
    calm = load is None or load[0] < BUSY * about["cores"]
    return kept(key, lambda: _measure(about["processor"], threads), keep=calm)


def _measure(processor: str, threads: int | None) -> Ceilings:
    draw = np.random.default_rng(0)
    square = draw.standard_normal((SIZE, SIZE), np.float32)
    rows = draw.standard_normal((ROWS * (threads or machine.cores()), SIZE), np.float32)
    packed = draw.integers(0, 256, (SIZE, SIZE // BLOCK, BLOCK // 2), np.uint8)
    scales = np.abs(draw.standard_normal(SIZE * SIZE // BLOCK, np.float32))
    bits = {"K": SIZE, "N": SIZE, "bits": 4, "block_size": BLOCK, "accuracy_level": INT8}
    products = {
        "float32": model("MatMul", {"w": square}),
        "int8": model("MatMulNBits", {"w": packed, "s": scales}, "com.microsoft", bits),
    }
    wide = np.ones(_large() // 4, np.float32)
    return Ceilings(
        bytes=wide.nbytes / _least(model("ReduceSum", {}), wide, threads),
        operations={
            name: 2 * rows.size * SIZE / _least(each, rows, threads)
            for name, each in products.items()
        },
        device=processor,
    )


def _large() -> int:
    """Bytes of an array that no cache holds."""
    try:
        told = max(_CACHES.glob("index*/size"), key=lambda path: path.parent.name).read_text()
        cache = int(told.strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        cache = 0
    return min(max(TIMES * cache, LEAST), MOST)


def _least(content: bytes, given: Array, threads: int | None) -> float:
    """The least seconds of several rounds, after one that warms up."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    engine = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    engine.run(None, {"x": given})
    times: list[float] = []
    while len(times) < ROUNDS or sum(times) < SECONDS:
        start = time.perf_counter()
        engine.run(None, {"x": given})
        times.append(time.perf_counter() - start)
    return min(times)


def model(
    op: str,
    weights: Mapping[str, Array],
    domain: str = "",
    attributes: Mapping[str, int] | None = None,
) -> bytes:
    """An ONNX model of one node, which takes `x` in float32 and gives `y`."""
    names = b"".join(field(1, name) for name in ("x", *weights))
    given = b"".join(
        field(5, field(1, name) + field(3, value) + field(20, _INT))
        for name, value in (attributes or {}).items()
    )
    node = names + field(2, "y") + field(4, op) + given + field(7, domain)
    graph = field(1, node) + field(2, op)
    graph += b"".join(field(5, _tensor(name, array)) for name, array in weights.items())
    graph += field(11, _free("x")) + field(12, _free("y"))
    versions = (field(8, field(1, name) + field(2, version)) for name, version in _VERSIONS.items())
    return field(1, 8) + field(7, graph) + b"".join(versions)


def _tensor(name: str, array: Array) -> bytes:
    shape = b"".join(field(1, size) for size in array.shape)
    kind = _UINT8 if array.dtype == np.uint8 else _FLOAT
    return shape + field(2, kind) + field(8, name) + field(9, array.tobytes())


def _free(name: str) -> bytes:
    """A value in float32 whose shape is not told."""
    return field(1, name) + field(2, field(1, field(1, _FLOAT)))
