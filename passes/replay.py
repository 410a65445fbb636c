"""Running a graph over many inputs piece by piece, with weights that change on the way.

A pass that quantizes layer by layer wants the inputs of a layer as its predecessors, quantized
already, leave them.  So the nodes are cut into segments; each runs once over all batches, and the
values that a later segment reads wait in memory, or on disk beyond `MEMORY` bytes.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime

from intaglio.ops import OPS

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Live = dict[str, Array | Path]

MEMORY = 1 << 30
KERNEL_DOMAIN = "com.microsoft"
KERNELS = {(op.domain, op.onnx_type): op.ort_domain for op in OPS if op.ort_domain}


class Replay:
    """A graph that has run up to some node, on a number of batches.

    `weights` maps nodes to the matrix that is to be their second input instead of the graph's,
    `replaced` initializers to their new content.  Both may grow while the replay goes on.
    """

    def __init__(self, model: ir.Model, batches: Sequence[Arrays]) -> None:
        self.weights: dict[ir.Node, Array] = {}
        self.replaced: dict[str, Array] = {}
        self._model = model
        self._nodes = list(model.graph)
        self._place = {node: index for index, node in enumerate(self._nodes)}
        self._last = self._last_uses()
        inputs = {value.name for value in model.graph.inputs}
        self._live: list[Live] = [
            {name: array for name, array in batch.items() if name in inputs} for batch in batches
        ]
        self._reached = 0
        self._bytes = 0
        self._serial = 0
        self._folder: Path | None = None

    def close(self) -> None:
        """Remove what was put on disk."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def run_to(self, node: ir.Node) -> None:
        """Run every node before `node`."""
        end = self._place[node]
        if end <= self._reached:
            return
        segment = self._segment(end)
        for live in self._live:
            for name, array in _run(segment, live).items():
                live[name] = self._keep(array)
            for name in [name for name in live if self._last.get(name, -1) < end]:
                self._drop(live.pop(name))
        self._reached = end

    def values(self, name: str) -> Iterator[Array]:
        """The value called `name` for each batch; it is one that the next node reads."""
        for live in self._live:
            yield _load(live[name])

    def outputs(self, batches: Sequence[int]) -> Iterator[dict[str, Array]]:
        """Run to the end on some of the batches, keeping nothing but the outputs."""
        segment = self._segment(len(self._nodes))
        names = [output.name or "" for output in self._model.graph.outputs]
        for index in batches:
            live = self._live[index]
            found = _run(segment, live)
            yield {name: found[name] if name in found else _load(live[name]) for name in names}

    def _segment(self, end: int) -> onnxruntime.InferenceSession:
        """A session of the nodes from where the replay stands up to `end`.

        Its inputs are what waits for them, its outputs what later nodes read.
        """
        nodes = self._nodes[self._reached : end]
        reads = {name for node in nodes for name in _reads(node)}
        nodes = [n for n in self._nodes[: self._reached] if _is_constant(n, reads)] + nodes
        made = {value.name for node in nodes for value in node.outputs if value.name}
        inputs = [
            _info(name, _load(kept).dtype)
            for name, kept in sorted(self._live[0].items())
            if name in reads
        ]
        outputs = [
            onnx.helper.make_empty_tensor_value_info(name)
            for name in sorted(made)
            if self._last.get(name, -1) >= end
        ]
        constants = self._model.graph.initializers.keys() & reads
        initializers = [self._initializer(name) for name in sorted(constants)]
        initializers += [_array(self.weights[n], n) for n in nodes if n in self.weights]
        protos = [self._node(node) for node in nodes]
        graph = onnx.helper.make_graph(protos, "segment", inputs, outputs, initializers)
        opsets = {**self._model.opset_imports, KERNEL_DOMAIN: 1}
        return _session(
            onnx.helper.make_model(
                graph,
                opset_imports=[onnx.helper.make_opsetid(*entry) for entry in opsets.items()],
                functions=[ir.serde.serialize_function(f) for f in self._model.functions.values()],
                ir_version=self._model.ir_version,
            )
        )

    def _node(self, node: ir.Node) -> onnx.NodeProto:
        """The node, with the weight it is to have, in the domain where the engine is fast."""
        proto = ir.serde.serialize_node(node)
        proto.domain = KERNELS.get((node.domain, node.op_type), node.domain)
        if node in self.weights:
            proto.input[1] = _weight_name(node)
        return proto

    def _initializer(self, name: str) -> onnx.TensorProto:
        if name in self.replaced:
            return onnx.numpy_helper.from_array(self.replaced[name], name)
        tensor = self._model.graph.initializers[name].const_value
        assert tensor is not None
        return onnx.numpy_helper.from_array(tensor.numpy(), name)

    def _last_uses(self) -> dict[str, int]:
        """For each value the index of the last node that reads it; past the end for outputs."""
        last = {name: index for index, node in enumerate(self._nodes) for name in _reads(node)}
        last |= {output.name or "": len(self._nodes) for output in self._model.graph.outputs}
        return last

    def _keep(self, array: Array) -> Array | Path:
        if self._bytes + array.nbytes <= MEMORY:
            self._bytes += array.nbytes
            return array
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="intaglio-"))
        self._serial += 1
        path = self._folder / f"{self._serial}.npy"
        np.save(path, array)
        return path

    def _drop(self, kept: Array | Path) -> None:
        if isinstance(kept, Path):
            kept.unlink()
        else:
            self._bytes -= kept.nbytes


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _run(session: onnxruntime.InferenceSession, live: Live) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    feeds = {entry.name: _load(live[entry.name]) for entry in session.get_inputs()}
    return dict(zip(names, session.run(names, feeds), strict=True))


def _load(kept: Array | Path) -> Array:
    array: Array = np.load(kept) if isinstance(kept, Path) else kept
    return array


def _weight_name(node: ir.Node) -> str:
    return f"{node.name}.weight"


def _array(weight: Array, node: ir.Node) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(weight, _weight_name(node))


def _info(name: str, dtype: np.dtype[Any]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(
        name, onnx.helper.np_dtype_to_tensor_dtype(dtype), None
    )


def _reads(node: ir.Node) -> Iterator[str]:
    """Names of all values that `node` reads, those of an enclosing graph included."""
    yield from (value.name for value in node.inputs if value is not None and value.name)
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            one = attribute.type == ir.AttributeType.GRAPH
            for graph in [attribute.as_graph()] if one else attribute.as_graphs():
                yield from (output.name for output in graph.outputs if output.name)
                for inner in graph:
                    yield from _reads(inner)


def _is_constant(node: ir.Node, reads: set[str]) -> bool:
    """Whether `node` is a constant that is read: cheaper made again than kept per batch."""
    return node.op_type == "Constant" and not node.domain and node.outputs[0].name in reads
