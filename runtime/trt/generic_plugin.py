"""The one plugin class: whatever its node computes, it launches the kernels that it carries.

TensorRT's importer looks for LinearAttention and CausalConvWithState under these names, and for
operators of our own under theirs; all are creators of the interface V3ONE that differ in name.
While an engine is built, a node's kernels are found by its name; in an engine they are fields of
its plugins, so that neither Triton nor PyTorch is needed where it runs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intaglio.runtime.launch import Expression, Shape, Size, evaluate

from .driver import aligned
from .kernels import NodeKernels
from .launcher import Launcher

VERSION = "1"
_PIECES: dict[str, bytes] = {}  # code that the engines of this process carry, by its digest

# TensorRT's name of each dtype.
_DTYPES = {
    "float16": "HALF",
    "bfloat16": "BF16",
    "float32": "FLOAT",
    "bool": "BOOL",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
}


def register(trt: Any, kernels: Mapping[str, NodeKernels], ops: Sequence[str]) -> list[Any]:
    """Register a creator for each of `ops`; the caller keeps what is returned alive.

    Args:
        trt: the module of a flavour.
        kernels: by the names of the nodes of a graph that is to be built; empty to run engines.
        ops: names of operators.
    """
    carriers: dict[str, str] = {}
    creators = [_creator(trt, op, kernels, carriers) for op in ops]
    for creator in creators:
        trt.get_plugin_registry().register_creator(creator, "")
    return creators


def workspace(kernels: NodeKernels, shapes: Sequence[Shape | None]) -> int:
    """Bytes of scratch for inputs of at most these shapes, on any GPU."""
    return max(
        sum(aligned(evaluate(size, shapes)) for size in variant.scratch)
        for plan in kernels.plans.values()
        for variant in plan.variants
    )


def _creator(
    trt: Any, op: str, kernels: Mapping[str, NodeKernels], carriers: dict[str, str]
) -> Any:
    plugin = _plugin(trt, carriers)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        """Makes plugins of one operator."""

        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = op, VERSION, ""
            self.field_names = trt.PluginFieldCollection([])

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            if phase == trt.TensorRTPhase.RUNTIME:
                return plugin(name, NodeKernels.from_fields(_read(fields), _PIECES))
            # The importer's name of a node is that of the graph; None makes it refuse the node.
            return plugin(name, kernels[name]) if name in kernels else None

    return Creator()


def _read(fields: Any) -> dict[str, bytes]:
    return {field.name: np.array(field.data).tobytes() for field in fields}


def _plugin(trt: Any, carriers: dict[str, str]) -> Any:
    bases = (
        trt.IPluginV3,
        trt.IPluginV3OneCore,
        trt.IPluginV3OneBuild,
        trt.IPluginV3OneRuntime,
    )

    class Plugin(*bases):  # type: ignore[misc]
        """One node: its kernels, and where it runs, what launches them."""

        def __init__(self, node: str, kernels: NodeKernels) -> None:
            for base in bases:
                base.__init__(self)
            self.node, self.kernels = node, kernels
            self.plugin_name, self.plugin_version, self.plugin_namespace = kernels.op, VERSION, ""
            self.num_outputs = len(kernels.plan.outputs)
            self.launcher: Launcher | None = None

        # What it is

        def get_capability_interface(self, kind: Any) -> Any:  # noqa: ARG002
            return self

        def clone(self) -> Any:
            return Plugin(self.node, self.kernels)

        # How an engine is built

        def get_output_data_types(self, types: Any) -> list[Any]:  # noqa: ARG002
            return [_dtype(trt, output.dtype) for output in self.kernels.plan.outputs]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> list[Any]:  # noqa: ARG002
            given = self.kernels.plan.spread(inputs)
            return [
                trt.DimsExprs([_express(trt, size, given, builder) for size in output.shape])
                for output in self.kernels.plan.outputs
            ]

        def supports_format_combination(self, position: int, tensors: Any, count: int) -> bool:
            plan = self.kernels.plan
            if position < count:
                wanted = plan.inputs[plan.spread(range(count)).index(position)]
            else:
                wanted = plan.outputs[position - count].dtype
            given = tensors[position].desc
            return given.format == trt.TensorFormat.LINEAR and (
                wanted is None or given.type == _dtype(trt, wanted)
            )

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            pass

        def get_valid_tactics(self) -> list[int]:
            return []

        def set_tactic(self, tactic: int) -> None:
            pass

        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:  # noqa: ARG002
            given = self.kernels.plan.spread([tuple(each.max) for each in inputs])
            return workspace(self.kernels, given)

        # How it runs

        def get_fields_to_serialize(self) -> Any:
            # TensorRT reads the bytes after this returns, so they live as long as the plugin.
            self.serialized = [
                trt.PluginField(name, np.frombuffer(data, np.int8), trt.PluginFieldType.CHAR)
                for name, data in self.kernels.to_fields(self.node, carriers).items()
            ]
            return trt.PluginFieldCollection(self.serialized)

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            pass

        def attach_to_context(self, context: Any) -> Any:  # noqa: ARG002
            return self.clone()

        def enqueue(
            self,
            input_desc: Any,
            output_desc: Any,  # noqa: ARG002
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace: int,
            stream: int,
        ) -> int:
            if self.launcher is None:
                self.launcher = Launcher(self.kernels)
            plan = self.kernels.plan
            shapes = plan.spread([tuple(each.dims) for each in input_desc])
            self.launcher.launch(shapes, plan.spread(inputs), outputs, workspace, stream)
            return 0

    return Plugin


def _dtype(trt: Any, name: str) -> Any:
    return getattr(trt.DataType, _DTYPES[name])


def _express(trt: Any, size: Size, inputs: Any, builder: Any) -> Any:
    """A size in the words of TensorRT's expression builder."""
    if not isinstance(size, Expression):
        return builder.constant(size)
    if size.operation == "dim":
        index, axis = size.of
        return inputs[index][axis]
    operation = getattr(trt.DimensionOperation, size.operation.upper())
    a, b = (_express(trt, each, inputs, builder) for each in size.of)
    return builder.operation(operation, a, b)
