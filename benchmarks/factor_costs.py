"""Whether two factors or their product are faster, measured and as `merge-factors` takes it.

    python benchmarks/factor_costs.py [--quick] [--json]

Square matrices and their factors of several ranks run in ONNX Runtime on one thread, by calls of
one token to many.  The pass takes the cheaper of both by a model of the cost; where that is the
slower one, what is lost is its time by that of the other.
"""

import time
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import onnxruntime
from evidence import Row, run
from onnx import TensorProto, helper, numpy_helper

from intaglio.passes.exact.merge_factors import MergeFactors

SIZES, TOKENS, PARTS = (64, 128, 512, 1024, 2048), (1, 8, 64, 256), (0.25, 0.5, 0.75, 0.9, 1.1)
WORK = 3e7  # entries read, or products, that one timing takes at least
ROUNDS = 7
NEAR = 1.05  # of the faster: as fast


def measure(quick: bool) -> list[Row]:
    """Rows of how often the model of the cost takes the faster, and what it loses."""
    sizes, tokens = (SIZES[:2], TOKENS[::3]) if quick else (SIZES, TOKENS)
    step, losses = MergeFactors(), {"the model of the cost": [], "parameters alone": []}  # type: ignore[var-annotated]
    merged = 0
    for size in sizes:
        for count in tokens:
            x = np.random.default_rng(0).standard_normal((count, size)).astype(np.float32)
            one = _seconds([(size, size)], x)
            for part in PARTS:
                rank = max(int(part * size / 2), 1)
                shapes = [(rank, size), (size, rank)]
                apart = _seconds(shapes, x)
                best = min(one, apart)
                takes_one = step.cost(count, (size, size)) <= step.cost(count, *shapes)
                merged += takes_one
                losses["the model of the cost"].append((one if takes_one else apart) / best)
                fewer = sum(n * k for n, k in shapes) < size * size
                losses["parameters alone"].append((apart if fewer else one) / best)
    rows = []
    for way, found in losses.items():
        right = sum(loss <= NEAR for loss in found) / len(found)
        by_cost = way == "the model of the cost"
        rows += [
            Row(name=f"choices by {way} within {NEAR - 1:.0%} of the faster", value=right,
                unit="of all", target=">= 0.9" if by_cost else None,
                holds=right >= 0.9 if by_cost else None,
                note=f"{len(found)} cases, {merged} of them merged" if by_cost else ""),
            Row(name=f"time of choices by {way} : of the faster, mean", value=fmean(found),
                unit="ratio", note=f"at most {max(found):.2f}"),
        ]  # fmt: skip
    return rows


def _seconds(shapes: Sequence[tuple[int, int]], x: np.ndarray) -> float:
    """Of one call of matrices [N, K] in a row."""
    random = np.random.default_rng(1)
    weights, nodes, value = [], [], "x"
    for index, (n, k) in enumerate(shapes):
        array = random.normal(0, 0.05, (k, n)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [f"y{index}"]))
        value = f"y{index}"
    ends = [("x", shapes[0][1]), (value, shapes[-1][0])]
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", size])
        for name, size in ends
    )
    graph = helper.make_graph(nodes, "factors", [given], [made], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    entries = sum(n * k for n, k in shapes) * max(len(x), 4) / 4
    calls = int(min(max(WORK / entries, 2), 200))
    session.run(None, {"x": x})
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            session.run(None, {"x": x})
        times.append((time.perf_counter() - start) / calls)
    return min(times)


if __name__ == "__main__":
    run(__doc__, measure)
