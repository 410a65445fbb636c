"""Running graphs, or parts of them, in ONNX Runtime: how passes learn and are checked."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from intaglio.errors import UnsupportedError

from .graph import describe, taken
from .run_limits import LimitedSession

Arrays = Mapping[str, npt.NDArray[Any]]

LENT = 1 << 20  # bytes from which an initializer is lent to the engine


def session(model: ir.Model, *, optimize: bool = False) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session of `model`, as written (`optimize=False`) or optimised.

    Large initializers are lent to the engine, not copied: a protobuf holds at most 2 GiB.  Nothing
    is kept from one call to the next.

    Raises:
        UnsupportedError: if ONNX Runtime has no kernel for a node with values of its type.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    graph, lent = _lend(model)
    # The first call alone would copy them, the second alone looks for a file.
    options.add_external_initializers(list(lent), list(lent.values()))
    for name, array in lent.items():
        options.add_initializer(name, array)
    try:
        return _Session(graph, options, lent)
    except NoKernel as error:
        raise UnsupportedError(_lacking(model, str(error))) from error


def _lacking(model: ir.Model, said: str) -> str:
    """Which node it is that ONNX Runtime has no kernel for."""
    name = said.rpartition("with name '")[2].rstrip("'")
    node = next((node for node in model.graph.all_nodes() if node.name == name), None)
    if node is None:
        return f"ONNX Runtime has no kernel for a part of the model: {said}."
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    kinds = sorted({str(value.dtype).lower() for value in values if value.dtype is not None})
    found = f"{describe(node)} takes {' and '.join(kinds)}: ONNX Runtime has no kernel for that."
    if "double" in kinds:
        found += " In float32 it has: model.float()."
    return found


class _Session(LimitedSession):
    """A session that keeps alive what it was lent."""

    def __init__(
        self,
        model: ir.Model,
        options: onnxruntime.SessionOptions,
        lent: Mapping[str, onnxruntime.OrtValue],
    ) -> None:
        self._lent = lent
        super().__init__(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def _lend(model: ir.Model) -> tuple[ir.Model, dict[str, onnxruntime.OrtValue]]:
    """`model` with its large initializers outside, and those as values of the engine's."""
    large = {
        name: tensor
        for name, value in model.graph.initializers.items()
        if (tensor := value.const_value) is not None and tensor.nbytes >= LENT and _plain(tensor)
    }
    if not large:
        return model, {}
    model = model.clone()
    for name, tensor in large.items():
        model.graph.initializers[name].const_value = ir.ExternalTensor(
            "lent", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )
    return model, {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensor.numpy()))
        for name, tensor in large.items()
    }


def _plain(tensor: ir.TensorProtocol) -> bool:
    """Whether numpy has the type of `tensor` itself: bfloat16 and sub-byte types are not lent."""
    return tensor.dtype != ir.DataType.STRING and tensor.numpy().dtype.isbuiltin == 1


def run(model: ir.Model, feeds: Arrays, *, optimize: bool = False) -> dict[str, npt.NDArray[Any]]:
    """Outputs of `model` by name."""
    engine = session(model, optimize=optimize)
    names = [output.name for output in engine.get_outputs()]
    return dict(zip(names, engine.run(names, dict(feeds)), strict=True))


def part(model: ir.Model, values: Sequence[ir.Value], given: Sequence[ir.Value] = ()) -> ir.Model:
    """A copy of the nodes that `values` are computed from, with `values` as its only outputs.

    What `given` holds becomes an input, and what it is computed from is left out.  The work is
    proportional to the part, not to the model: passes ask for one part per layer.
    """
    nodes, sources = _ancestors(values, frozenset(given))
    view = ir.GraphView(
        [value for value in sources if value.is_graph_input() or value in given],
        values,
        nodes=nodes,
        initializers=[v for v in sources if v.is_initializer() and v not in given],
        opset_imports=model.graph.opset_imports,
        name=model.graph.name,
    )
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(view.clone(), ir_version=model.ir_version, functions=functions)


def _ancestors(
    values: Sequence[ir.Value], given: Collection[ir.Value]
) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes behind `values`, each after those it takes from, and the values they start at."""
    nodes: dict[ir.Node, None] = {}
    sources: dict[ir.Value, None] = {}
    pending: list[tuple[ir.Value | ir.Node, bool]] = [(value, False) for value in reversed(values)]
    while pending:
        entry, ready = pending.pop()
        node = entry if isinstance(entry, ir.Node) else entry.producer()
        if node is None or entry in given:
            assert isinstance(entry, ir.Value)
            sources[entry] = None
        elif ready:
            nodes[node] = None
        elif node not in nodes:
            pending.append((node, True))
            pending += [(value, False) for value in reversed(list(taken(node)))]
    return list(nodes), list(sources)
