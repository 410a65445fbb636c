"""Defines every plugin in the plugin layer of full TensorRT and evaluates launches; see the test.

Run with the folder of libraries that the test makes on LD_LIBRARY_PATH, and the jobs on stdin.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import tensorrt_bindings as trt

sys.modules["tensorrt"] = trt
import tensorrt.plugin  # noqa: E402
from tensorrt_bindings.plugin import _lib, _tensor  # noqa: E402

from intaglio.ops import OPS  # noqa: E402
from intaglio.runtime.launch import Buffer, evaluate  # noqa: E402
from intaglio.trt_plugins.ahead import Compiled  # noqa: E402
from intaglio.trt_plugins.quick import define  # noqa: E402

OPERATIONS: dict[Any, Callable[[int, int], int]] = {
    trt.DimensionOperation.SUM: lambda a, b: a + b,
    trt.DimensionOperation.SUB: lambda a, b: a - b,
    trt.DimensionOperation.PROD: lambda a, b: a * b,
    trt.DimensionOperation.MAX: max,
    trt.DimensionOperation.MIN: min,
    trt.DimensionOperation.FLOOR_DIV: lambda a, b: a // b,
    trt.DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
    trt.DimensionOperation.LESS: lambda a, b: int(a < b),
}
DTYPES = {
    "float16": trt.float16,
    "bfloat16": trt.bfloat16,
    "float32": trt.float32,
    "int32": trt.int32,
    "bool": trt.bool,
}


class Builder:
    """A stand-in for TensorRT's expression builder: expressions are the numbers they come to."""

    def constant(self, value: int) -> int:
        return value

    def operation(self, kind: Any, a: int, b: int) -> int:
        return OPERATIONS[kind](a, b)


def check(name: str, compiled: Compiled, inputs: tuple[str, ...], shapes: list[Any]) -> int:
    """Define a plugin and hold each tactic's launch to the plan; how many there are."""
    identity = define(trt, name, compiled, inputs)
    plugin = _lib.QDP_REGISTRY[identity]
    _tensor.SymIntExpr._exprBuilder = Builder()
    plan = compiled.plan
    present = [index for index, dtype in enumerate(plan.inputs) if dtype is not None]
    tensors = [
        tensorrt.plugin.from_shape_expr(tuple(shapes[index]), DTYPES[str(plan.inputs[index])])
        for index in present
    ]
    made = plugin.register_func(*tensors)
    outputs = list(made) if isinstance(made, tuple) else [made]
    for got, wanted in zip(outputs, plan.outputs, strict=True):
        assert [d._expr for d in got.shape_expr] == [evaluate(s, shapes) for s in wanted.shape]
        assert got.dtype == DTYPES[wanted.dtype]
    (combination,) = plugin.autotune_func(*tensors, outputs)
    for tactic in combination._tactics:
        entry, ptx, how, extra = plugin.aot_impl_func(*tensors, outputs, tactic)
        launches = [variant.launches[0] for variant in plan.variants]
        (launch,) = (x for x in launches if compiled.code[x.code].ptx == ptx)
        assert launch.entry == entry
        grid = [each._expr for each in (how.grid_x, how.grid_y, how.grid_z)]
        assert grid == [evaluate(size, shapes) for size in launch.grid]
        block = [each._expr for each in (how.block_x, how.block_y, how.block_z, how.shared_mem)]
        assert block == [launch.threads, 1, 1, launch.shared]
        sizes = [x for x in launch.arguments if not isinstance(x, Buffer)]
        assert [x._expr for x in extra] == [evaluate(size, shapes) for size in sizes]
    return len(combination._tactics)


def main() -> None:
    """Answer each job on stdin with the number of its tactics."""
    ops = {op.name: op for op in OPS}
    for index, line in enumerate(sys.stdin):
        job = json.loads(line)
        compiled = Compiled.from_json(job["compiled"])
        inputs = tuple(job["inputs"] or ops[job["op"]].inputs)
        count = check(f"{job['op']}_{index}", compiled, inputs, job["shapes"])
        sys.stdout.write(f"{count}\n")


main()
