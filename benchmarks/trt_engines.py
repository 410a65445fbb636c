"""Engines by TensorRT-RTX, without a GPU, of every trained checkpoint.

    python benchmarks/trt_engines.py [--quick] [--json]

Each checkpoint is exported for TensorRT, in fp32, and its projections quantized to 2 bits once
more.  Of an engine, the record of its build tells the layers: every recurrence and every product of
2 bits has to be a plugin of ours, none a loop.  Its bindings are compared with the graph for ONNX
Runtime, by name and dtype, and by shape but for the caches, which have a size here.  The graph it
was built from, bodies in place of plugins, is stepped by ONNX Runtime against the source in
float64.  No engine has run: that takes a GPU.  `--quick` takes one checkpoint.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from evidence import Row, run

from intaglio import export
from intaglio.exporter.trt import LONGEST_CACHE, plugin_ops
from intaglio.exporter.verify import verify
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.trt.build import GRAPH, Built, read_built
from intaglio.state import CAPACITY

CHECKPOINTS = Path(__file__).parents[1] / "models" / "checkpoints"
NAMES = ("gla", "gated_deltanet", "llama", "llama_window")
LOW_BIT = "rtn:bits=2,group=64"
STEPS = 256
LIMIT = 1e-4
# What TensorRT's dtypes are called in the graph for ONNX Runtime.
DTYPES = {"FLOAT": "FLOAT", "INT64": "INT64"}


def measure(quick: bool) -> list[Row]:
    """Rows for each checkpoint, as it is and in 2 bits."""
    torch.set_num_threads(1)
    names = NAMES[:1] if quick else NAMES
    return [row for name in names for passes in ([], [LOW_BIT]) for row in _rows(name, passes)]


def _rows(name: str, passes: list[str]) -> Iterator[Row]:
    title = f"{name}{', 2 bits' if passes else ''}"
    source = CHECKPOINTS / f"{name}.pt"
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder, "bundle")
        export(source, bundle, targets=["ort", "trt"], passes=passes, verify=False)
        opened = Bundle.open(bundle)
        built = read_built(opened)
        assert built is not None
        report = verify(bundle, source, graph=True, steps=STEPS, keep=False)
        lowered = ir.load(bundle / GRAPH).graph
        ort = ir.load(bundle / "ort/model.onnx").graph
    ops = {op.onnx_type for op in plugin_ops().values()}
    wanted = {str(node.name): node.op_type for node in lowered if node.op_type in ops}
    found = {layer.name: layer.plugin for layer in built.layers if layer.plugin}
    loops = [x.name for x in built.layers if "LOOP" in x.kind or "RECURRENCE" in x.kind]
    kinds = ", ".join(sorted(set(found.values()))) or "none"
    devices = ", ".join(map(str, built.capabilities))
    yield Row(name=f"{title}: engine", value=built.bytes / 1e6, unit="MB",
              note=f"{built.flavour} {built.version}, compute capability {devices}")  # fmt: skip
    yield Row(name=f"{title}: plugin layers", value=len(found), unit="",
              target=f"{len(wanted)}", holds=found == wanted, note=kinds)  # fmt: skip
    yield Row(name=f"{title}: loops", value=len(loops), unit="", target="0", holds=not loops)
    differing = list(_differing(built, ort))
    yield Row(name=f"{title}: bindings that differ", value=len(differing), unit="", target="0",
              holds=not differing, against="ort/model.onnx", note=", ".join(differing))  # fmt: skip
    error = report.worst.found.error
    yield Row(name=f"{title}: error of the lowered graph", value=error, unit="of the largest",
              target=f"<= {LIMIT:g}", holds=report.passed and error <= LIMIT,
              against="float64", note=f"{report.steps} steps in ONNX Runtime")  # fmt: skip


def _differing(built: Built, graph: ir.Graph) -> Iterator[str]:
    """Names of inputs and outputs that are not those of the graph."""
    for bindings, values in ((built.inputs, graph.inputs), (built.outputs, graph.outputs)):
        found = {each.name: (DTYPES.get(each.dtype), each.shape) for each in bindings}
        wanted = {str(value.name): _binding(value) for value in values}
        for name in found.keys() | wanted.keys():
            if name not in found or name not in wanted or not _fits(found[name], wanted[name]):
                yield name


def _binding(value: ir.Value) -> tuple[str, tuple[int, ...]]:
    assert value.dtype is not None
    assert value.shape is not None
    sizes = {CAPACITY: LONGEST_CACHE}
    shape = tuple(d if isinstance(d, int) else sizes.get(str(d.value), -1) for d in value.shape)
    return value.dtype.name, shape


def _fits(found: tuple[Any, tuple[int, ...]], wanted: tuple[str, tuple[int, ...]]) -> bool:
    """Whether a binding has the dtype and, where the graph knows it, the shape."""
    if found[0] != wanted[0] or len(found[1]) != len(wanted[1]):
        return False
    return all(b in (a, -1) for a, b in zip(found[1], wanted[1], strict=True))


if __name__ == "__main__":
    run(__doc__, measure)
