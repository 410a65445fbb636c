"""Defines every plugin in the plugin layer of full TensorRT and launches it; see the test.

Run with the folder of libraries that the test makes on LD_LIBRARY_PATH, and the jobs on stdin.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import tensorrt_bindings as trt

sys.modules["tensorrt"] = trt
import tensorrt.plugin  # noqa: E402
from emulator.device import Gpu  # noqa: E402
from emulator.kernel import kernel_of  # noqa: E402
from emulator.memory import Global  # noqa: E402
from emulator.plugins import compared, draw, poisoned  # noqa: E402
from emulator.requests import wide  # noqa: E402
from tensorrt_bindings.plugin import _lib, _tensor  # noqa: E402

from intaglio.ops.op import Sample  # noqa: E402
from intaglio.runtime.launch import Buffer, evaluate  # noqa: E402
from intaglio.trt_plugins import find  # noqa: E402
from intaglio.trt_plugins.ahead import CompiledPlan  # noqa: E402
from intaglio.trt_plugins.launch_torch import request_of  # noqa: E402
from intaglio.trt_plugins.plugin import Plugin  # noqa: E402
from intaglio.trt_plugins.quick import define  # noqa: E402

SM = 80
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


def check(name: str, compiled: CompiledPlan) -> int:
    """Define a plugin, hold its launches to the plan and carry them out; how many tactics it has.

    Everything is done for several shapes.
    """
    op = find(name)
    plugin = _lib.QDP_REGISTRY[define(trt, name, compiled, op.inputs)]
    _tensor.SymIntExpr._exprBuilder = Builder()
    counts = {
        launched(op, compiled, plugin, draw(wide(name, SM), batch=batch, time=time))
        for batch, time in ((1, 1), (2, 3), (3, 40))
    }
    (count,) = counts
    return count


def launched(op: Plugin, compiled: CompiledPlan, plugin: Any, sample: Sample) -> int:
    """Launch every tactic with what TensorRT would pass to it; how many there are."""
    _, arguments = request_of(op, sample, SM)
    shapes = [None if x is None else tuple(x.shape) for x in arguments]
    plan, present = compiled.plan, [x for x in arguments if x is not None]
    tensors = [
        tensorrt.plugin.from_shape_expr(tuple(x.shape), DTYPES[str(x.dtype).removeprefix("torch.")])
        for x in present
    ]
    made = plugin.register_func(*tensors)
    outputs = list(made) if isinstance(made, tuple) else [made]
    for got, wanted in zip(outputs, plan.outputs, strict=True):
        assert [d._expr for d in got.shape_expr] == [evaluate(s, shapes) for s in wanted.shape]
        assert got.dtype == DTYPES[wanted.dtype]
    (combination,) = plugin.autotune_func(*tensors, outputs)
    for tactic in combination._tactics:
        entry, ptx, how, extra = plugin.aot_impl_func(*tensors, outputs, tactic)
        grid = tuple(each._expr for each in (how.grid_x, how.grid_y, how.grid_z))
        block = [each._expr for each in (how.block_x, how.block_y, how.block_z)]
        shared, sizes = how.shared_mem._expr, [x._expr for x in extra]
        first = [variant.launches[0] for variant in plan.variants]
        (launch,) = (x for x in first if compiled.code[x.code].ptx == ptx)
        assert launch.entry == entry
        assert grid == tuple(evaluate(size, shapes) for size in launch.grid)
        assert (block, shared) == ([launch.threads, 1, 1], launch.shared)
        assert sizes == [evaluate(x, shapes) for x in launch.arguments if not isinstance(x, Buffer)]
        gpu, buffers = Gpu(SM), poisoned(plan, shapes)
        to = [gpu.put(x) for x in buffers]
        values = [*(gpu.put(x) for x in present), *sizes, *to]
        kernel_of(ptx, entry).launch(grid, block[0], shared, values, Global(gpu.allocations()))
        found = [gpu.get(at, x) for at, x in zip(to, buffers, strict=True)]
        assert max(compared(op, sample, found)) <= op.tolerance["float16"], (op.name, tactic)
    return len(combination._tactics)


def main() -> None:
    """Answer each job on stdin with the number of its tactics."""
    for line in sys.stdin:
        job = json.loads(line)
        count = check(job["op"], CompiledPlan.from_json(job["compiled"]))
        sys.stdout.write(f"{count}\n")


main()
