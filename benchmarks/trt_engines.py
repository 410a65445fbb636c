"""Engines by TensorRT-RTX, without a GPU: every trained checkpoint, and families of Hugging Face.

    python benchmarks/trt_engines.py [--quick] [--json]

Each checkpoint is exported for TensorRT in fp32 and in fp16, as it is and with its projections
quantized to 2 bits; of the families, tiny random models, as `hf_configs.py` has them, in fp32
for one compute capability.  Of an engine, the record of its build tells the layers: every
recurrence and every product of 2 bits has to be a plugin of ours, none a loop.  Its bindings are
compared with the graph for ONNX Runtime, by name and dtype, and by shape but for the caches, which
have a size here; in fp16, caches are of that dtype.  The graph it was built from, bodies in place
of plugins, is stepped by ONNX Runtime against the source in float64.  Then the engine is, on an
emulated GPU, as `intaglio verify --target trt` does: plugins launch their kernels there, and
TensorRT's own layers are ONNX's reference.  No engine has run on a GPU.  `--quick` takes one
checkpoint, and no family.
"""

import sys
import tempfile
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from evidence import Row, run
from hf_configs import FAMILIES, Family, save
from torch import nn

from intaglio import export
from intaglio.errors import IntaglioError
from intaglio.exporter.proving.parity import ParityReport
from intaglio.exporter.proving.verify import verify
from intaglio.exporter.writing.trt import plugin_ops
from intaglio.runtime import user_cache
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.trt.engine_build import GRAPH, TARGET, Built, read_built
from intaglio.state import CAPACITY

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from emulator.device import Gpu
from emulator.engine import install

CHECKPOINTS = Path(__file__).parents[1] / "models" / "checkpoints"
NAMES = ("gla", "gated_deltanet", "llama", "llama_window")
LOW_BIT = "rtn:bits=2,group=64"
STEPS = 256
LIMITS = {"fp32": 1e-4, "fp16": 2e-2}
FAMILY_STEPS = 64
EMULATED = 86  # compute capability of the GPU that is emulated, and of the families' engines
GPU_STEPS, LOW_BIT_STEPS = 24, 4  # on it; products of 2 bits take seconds there
# What TensorRT's dtypes are called in the graph for ONNX Runtime.
DTYPES = {"FLOAT": "FLOAT", "HALF": "FLOAT16", "INT64": "INT64"}


def measure(quick: bool) -> list[Row]:
    """Rows for each checkpoint, as it is and in 2 bits, in fp32 and fp16, and for each family."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in NAMES[:1] if quick else NAMES:
        for bits, passes in (("", []), (", 2 bits", [LOW_BIT])):
            for dtype in LIMITS:
                title = f"{name}, {dtype}{bits}"
                rows += _rows(title, CHECKPOINTS / f"{name}.pt", STEPS, dtype=dtype, passes=passes)
    for family in () if quick else FAMILIES:
        rows += _family(family)
    return rows


def _family(family: Family) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        save(family, source)
        try:
            return list(_rows(family.name, source, FAMILY_STEPS, dtype="fp32", sm=[EMULATED]))
        except IntaglioError as error:
            reason = str(error).replace(f"{folder}/", "")
            name = f"{family.name}: exports"
            return [Row(name=name, value=0, unit="", target="1", holds=False, note=reason)]


def _rows(title: str, source: Path, steps: int, *, dtype: str, **options: Any) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder, "bundle")
        export(source, bundle, targets=["ort", "trt"], dtype=dtype, verify=False, **options)
        opened = Bundle.open(bundle)
        built = read_built(opened.graph())
        assert built is not None
        report = verify(bundle, source, lowered=True, steps=steps, keep=False)
        on_gpu = emulated(bundle, source, LOW_BIT_STEPS if options.get("passes") else GPU_STEPS)
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
    differing = list(_differing(built, ort, opened.manifest))
    yield Row(name=f"{title}: bindings that differ", value=len(differing), unit="", target="0",
              holds=not differing, against="ort/model.onnx", note=", ".join(differing))  # fmt: skip
    for what, made in (
        ("error of the lowered graph", report),
        ("error on an emulated GPU", on_gpu),
    ):
        error = made.worst.found.error
        yield Row(name=f"{title}: {what}", value=error, unit="of the largest",
                  target=f"<= {LIMITS[dtype]:g}", holds=made.passed and error <= LIMITS[dtype],
                  against="float64", note=f"{made.steps} steps")  # fmt: skip


def emulated(bundle: Path, source: Path | nn.Module, steps: int) -> ParityReport:
    """Verify the engine on an emulated GPU."""
    with pytest.MonkeyPatch.context() as patch:
        install(bundle, Gpu(EMULATED), user_cache.folder("kernels"), patch)
        return verify(bundle, source, target="trt", steps=steps, keep=False)


def _differing(built: Built, graph: ir.Graph, manifest: Manifest) -> Iterator[str]:
    """Names of inputs and outputs that are not those of the graph, but for caches in fp16."""
    states = [state for state in manifest.main.states_of(TARGET) if state.dtype == "float16"]
    halved = {name for state in states for name in (state.input, state.output)}
    capacity = built.capacity(manifest.main)
    for bindings, values in ((built.inputs, graph.inputs), (built.outputs, graph.outputs)):
        found = {each.name: (DTYPES.get(each.dtype), each.shape) for each in bindings}
        wanted = {str(value.name): _binding(value, halved, capacity) for value in values}
        for name in found.keys() | wanted.keys():
            if name not in found or name not in wanted or not _fits(found[name], wanted[name]):
                yield name


def _binding(
    value: ir.Value, halved: AbstractSet[str], capacity: int | None
) -> tuple[str, tuple[int, ...]]:
    assert value.dtype is not None
    assert value.shape is not None
    sizes = {CAPACITY: capacity}
    shape = tuple(d if isinstance(d, int) else sizes.get(str(d.value)) or -1 for d in value.shape)
    return "FLOAT16" if value.name in halved else value.dtype.name, shape


def _fits(found: tuple[Any, tuple[int, ...]], wanted: tuple[str, tuple[int, ...]]) -> bool:
    """Whether a binding has the dtype and, where the graph knows it, the shape."""
    if found[0] != wanted[0] or len(found[1]) != len(wanted[1]):
        return False
    return all(b in (a, -1) for a, b in zip(found[1], wanted[1], strict=True))


if __name__ == "__main__":
    run(__doc__, measure)
