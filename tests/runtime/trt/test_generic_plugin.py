"""The plugin class, driven through NVIDIA's bindings: shapes, formats, fields, launch plan."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from intaglio.runtime.trt import generic_plugin
from intaglio.runtime.trt.kernels import NodeKernels

trt = pytest.importorskip("tensorrt_rtx")

Make = Callable[..., NodeKernels]
SHAPES = [(2, 40, 64), (2, 40, 64), (2, 40, 64), (2, 4, 16, 16)]


def creator(make: Make, op: str) -> Any:
    """A creator of `op` that knows one node of the graph."""
    (made,) = generic_plugin.register(trt, {"node": make(op)}, [op])
    return made


class Builder:
    """A stand-in for TensorRT's expression builder: expressions are the numbers they come to."""

    def constant(self, value: int) -> int:
        return value

    def operation(self, kind: Any, a: int, b: int) -> int:
        return {trt.DimensionOperation.PROD: a * b, trt.DimensionOperation.SUM: a + b}[kind]


def test_a_node_is_found_by_its_name(make_kernels: Make) -> None:
    """The graph's nodes have kernels; one that has none is refused, not built without."""
    made = creator(make_kernels, "PluginOfATest")
    empty = trt.PluginFieldCollection([])
    found = made.create_plugin("node", empty, trt.TensorRTPhase.BUILD)

    assert found.plugin_name == "PluginOfATest"
    assert found.num_outputs == 2
    assert made.create_plugin("other", empty, trt.TensorRTPhase.BUILD) is None
    registry = trt.get_plugin_registry()
    assert registry.get_creator("PluginOfATest", "1", "") is not None


def test_an_engine_carries_plan_and_code(make_kernels: Make) -> None:
    """What a plugin serializes makes the same plugin where the engine runs."""
    made = creator(make_kernels, "PluginOfEngine")
    built = made.create_plugin("node", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)
    fields = built.get_fields_to_serialize()
    again = made.create_plugin("whatever", fields, trt.TensorRTPhase.RUNTIME)

    assert again.kernels == built.kernels == make_kernels("PluginOfEngine")
    assert again.clone().kernels == built.kernels


def test_outputs_follow_from_the_plan(make_kernels: Make) -> None:
    """Dtypes and symbolic shapes."""
    made = creator(make_kernels, "PluginOfShapes")
    built = made.create_plugin("node", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)

    assert built.get_output_data_types([]) == [trt.DataType.HALF, trt.DataType.FLOAT]
    kernels = make_kernels()
    sizes = [
        [generic_plugin._express(trt, s, SHAPES, Builder()) for s in o.shape]
        for o in kernels.plan.outputs
    ]
    assert sizes == [[2, 40, 64], [2, 4, 16, 16]]


def test_only_the_compiled_dtypes_are_taken(make_kernels: Make) -> None:
    """Kernels are compiled for their dtypes; the state stays in fp32."""
    made = creator(make_kernels, "PluginOfFormats")
    built = made.create_plugin("node", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)
    half, single = trt.DataType.HALF, trt.DataType.FLOAT

    def takes(position: int, dtype: Any, layout: Any = trt.TensorFormat.LINEAR) -> bool:
        given = SimpleNamespace(desc=SimpleNamespace(type=dtype, format=layout))
        return bool(built.supports_format_combination(position, [given] * 6, 4))

    assert [takes(i, half) for i in range(6)] == [True, True, True, False, True, False]
    assert [takes(i, single) for i in range(6)] == [False, False, False, True, False, True]
    assert not takes(0, half, trt.TensorFormat.CHW2)


def test_an_absent_input_has_a_place_in_the_plan_alone(make_kernels: Make) -> None:
    """TensorRT gives three tensors where the operator has four inputs."""
    kernels = make_kernels("PluginOfAbsence")
    plans = {
        sm: replace(plan, inputs=("float16", None, "float16", "float32"))
        for sm, plan in kernels.plans.items()
    }
    (made,) = generic_plugin.register(
        trt, {"node": replace(kernels, plans=plans)}, ["PluginOfAbsence"]
    )
    built = made.create_plugin("node", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)
    half, single = trt.DataType.HALF, trt.DataType.FLOAT

    def takes(position: int, dtype: Any) -> bool:
        given = SimpleNamespace(desc=SimpleNamespace(type=dtype, format=trt.TensorFormat.LINEAR))
        return bool(built.supports_format_combination(position, [given] * 5, 3))

    assert [takes(i, half) for i in range(5)] == [True, True, False, True, False]
    assert [takes(i, single) for i in range(5)] == [False, False, True, False, True]
    calls: list[Any] = []
    built.launcher = SimpleNamespace(launch=lambda *given: calls.append(given))
    shapes = [SHAPES[0], *SHAPES[2:]]
    built.enqueue([SimpleNamespace(dims=s) for s in shapes], [], [1, 3, 4], [5, 6], 7, 8)
    assert calls == [([shapes[0], None, *shapes[1:]], [1, None, 3, 4], [5, 6], 7, 8)]


def test_scratch_is_asked_for_the_largest_shapes(make_kernels: Make) -> None:
    """Enough for every variant, each tensor rounded up."""
    made = creator(make_kernels, "PluginOfScratch")
    built = made.create_plugin("node", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)
    described = [SimpleNamespace(max=shape) for shape in SHAPES]

    assert built.get_workspace_size(described, []) == 256 + 256


def test_enqueue_launches_the_plan(make_kernels: Make) -> None:
    """Shapes come from the descriptors, addresses as they are."""
    made = creator(make_kernels, "PluginOfLaunches")
    built = made.create_plugin("node", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)
    calls: list[Any] = []
    built.launcher = SimpleNamespace(launch=lambda *given: calls.append(given))
    described = [SimpleNamespace(dims=shape) for shape in SHAPES]

    assert built.enqueue(described, [], [1, 2, 3, 4], [5, 6], 7, 8) == 0
    assert calls == [(SHAPES, [1, 2, 3, 4], [5, 6], 7, 8)]
