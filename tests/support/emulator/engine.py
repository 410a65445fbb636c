"""A bundle's engine on the emulated GPU: its plugins launch kernels, the rest is ONNX's reference.

What TensorRT itself computes between plugins is taken from the graph that it imports.
"""

import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import torch
from device import TensorRT
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from intaglio.runtime.bundle import Bundle, BundleGraph
from intaglio.runtime.trt.engine_build import TARGET, read_built
from intaglio.runtime.trt.flavour import FLAVOURS
from intaglio.runtime.trt.generic_plugin import workspace
from intaglio.runtime.trt.kernels import NodeKernels, read
from intaglio.runtime.trt.launcher import Launcher
from intaglio.trt_plugins.ahead import CompiledPlan

from .device import STREAM, Gpu
from .plugins import poisoned

Array = npt.NDArray[Any]


def install(bundle: Path, gpu: Gpu, cache: Path, patch: pytest.MonkeyPatch) -> "Graph":
    """Have sessions of the bundle's engines run on the emulated GPU, until the patch is undone.

    Returns:
        The main graph, in the place of its engine.
    """
    trt, main = None, None
    for graph in Bundle.open(bundle).graphs.values():
        if TARGET not in graph.entry.targets:
            continue
        built = read_built(graph)
        assert built is not None
        made = Graph(graph, gpu, cache)
        if trt is None or main is None:
            real = importlib.import_module(FLAVOURS[built.flavour])
            trt, main = TensorRT(real, gpu, made, built.profiles), made
        trt.add(graph, made, built.profiles)
    assert trt is not None
    assert main is not None
    trt.install(patch)
    return main


class Graph:
    """In the place of an ONNX Runtime session of the graph that an engine is built from.

    Attributes:
        launched: how often kernels of each operator were launched.
    """

    def __init__(self, graph: BundleGraph, gpu: Gpu, cache: Path) -> None:
        """Read a graph; `cache` is where the kernels that it carries are kept as PTX, too."""
        model = ir.load(graph.root / graph.target(TARGET).path)
        ir.external_data.set_base_dir(model.graph, graph.root)
        for value in model.graph.initializers.values():
            assert value.const_value is not None
            value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
        self.launched: Counter[str] = Counter()
        self._proto = ir.to_proto(model)
        self._gpu = gpu
        self._launchers: dict[str, tuple[NodeKernels, Launcher]] = {}
        texts = _texts(cache)
        for node, kernels in read(graph).items():
            code = {key: texts[_digest(binary)] for key, binary in kernels.code.items()}
            known = replace(kernels, code=code)
            self._launchers[node] = known, Launcher(known, gpu)
        types = {
            (node.domain, node.op_type)
            for node in self._proto.graph.node
            if node.name in self._launchers
        }
        # Bodies that plugins stand for, of which the reference could not compute all.
        bodies = [x for x in self._proto.functions if (x.domain, x.name) not in types]
        del self._proto.functions[:]
        self._proto.functions.extend(bodies)
        self._evaluator = ReferenceEvaluator(
            self._proto,
            new_ops=[GatherElements, Pad, *(self._plugin(*each) for each in sorted(types))],
        )

    def get_inputs(self) -> list[SimpleNamespace]:
        return [_described(value) for value in self._proto.graph.input]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [_described(value) for value in self._proto.graph.output]

    def run(self, names: Sequence[str], given: Mapping[str, Array]) -> list[Array]:
        return list(self._evaluator.run(list(names), dict(given)))

    def _plugin(self, domain: str, kind: str) -> type[OpRun]:
        """An operator whose nodes launch their kernels."""
        compute = self._compute

        def run(self: OpRun, *inputs: Array | None, **_: Any) -> tuple[Array, ...]:
            return compute(self.onnx_node.name, inputs)

        return type(kind, (OpRun,), {"op_domain": domain, "_run": run})

    def _compute(self, node: str, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        kernels, launcher = self._launchers[node]
        present = [torch.from_numpy(np.array(x)) for x in inputs if x is not None]
        given = kernels.plan.spread(present)
        shapes = [None if x is None else tuple(x.shape) for x in given]
        outputs = poisoned(kernels.plan, shapes)
        before = set(self._gpu.memory)
        to = [self._gpu.put(x) for x in outputs]
        addresses = [None if x is None else self._gpu.put(x) for x in given]
        scratch = self._gpu.put(torch.empty(workspace(kernels, shapes), dtype=torch.uint8))
        launcher.launch(shapes, addresses, to, scratch, STREAM)
        made = tuple(self._gpu.get(at, x).numpy() for at, x in zip(to, outputs, strict=True))
        for address in set(self._gpu.memory) - before:
            self._gpu.cuMemFree(address)
        self.launched[kernels.op] += 1
        return made


class Pad(OpRun):
    """The reference's, whose paddings may be negative, too: these cut entries off."""

    def _run(
        self,
        data: Array,
        pads: Array,
        constant_value: Array | None = None,
        axes: Array | None = None,
        mode: str | None = None,
    ) -> tuple[Array]:
        each = range(data.ndim) if axes is None else [int(axis) for axis in axes]
        around, kept = [(0, 0)] * data.ndim, [slice(None)] * data.ndim
        for axis, begin, end in zip(each, *np.reshape(pads, (2, -1)).tolist(), strict=True):
            around[axis] = max(begin, 0), max(end, 0)
            kept[axis] = slice(max(-begin, 0), data.shape[axis] - max(-end, 0))
        filled: dict[str, Any] = {
            "constant_values": 0 if constant_value is None else constant_value
        }
        if mode not in (None, "constant"):
            filled = {"mode": mode}
        return (np.pad(data[tuple(kept)], around, **filled),)


class GatherElements(OpRun):
    """The standard's operator, which onnx 1.22's own reference gets wrong for some rows."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Array]:
        return (np.take_along_axis(data, indices, axis),)


def _texts(cache: Path) -> dict[str, bytes]:
    """PTX by the digest of the machine code that was made of it."""
    found = {}
    for file in cache.glob("*.json"):
        for code in CompiledPlan.from_json(json.loads(file.read_bytes())).code.values():
            found[_digest(code.cubin)] = code.ptx.encode()
    return found


def _digest(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()


def _described(value: onnx.ValueInfoProto) -> SimpleNamespace:
    dtype = tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    named = {"float32": "float"}.get(dtype.name, dtype.name)
    return SimpleNamespace(name=value.name, type=f"tensor({named})")
