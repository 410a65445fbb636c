"""Layers of an engine timed and given to modules, through a stand-in for the GPU."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from device import Setting
from engines import MOST_TOKENS
from gpu import Driver

from intaglio.errors import DeviceError, ProfileError
from intaglio.runtime import user_cache
from intaglio.runtime.onnx_graph import Node, OnnxGraph
from intaglio.runtime.op_trace import Trace
from intaglio.runtime.profile.child import BundleRunner
from intaglio.runtime.trt import ceilings
from intaglio.runtime.trt.driver import Device
from intaglio.runtime.trt.log import logger
from intaglio.runtime.trt.trt_tracer import ENGINE, layers, traced

real = pytest.importorskip("tensorrt_rtx")

MakeSetting = Callable[..., Setting]
LAYERS = [
    {"Name": "a", "LayerType": "gemm", "Metadata": "[ONNX Layer: node_logits]", "ms": 0.25},
    {"Name": "b", "LayerType": "Reformat", "Metadata": "", "ms": 0.5},
]


@pytest.fixture
def setting(make: MakeSetting) -> Setting:
    """An engine with a recurrence, whose layers take 0.75 ms, and 2 ms lie between them."""
    found = make("recurrent", "static")
    found.trt.layers, found.trt.gap = LAYERS, 2.0
    return found


def runner(setting: Setting) -> BundleRunner:
    found = BundleRunner()
    found.load(str(setting.bundle), "trt", 1, None, trace=True)
    return found


def test_layers_of_each_step_are_timed_captured_or_not(setting: Setting) -> None:
    """What lies between them is apart; copies of inputs and outputs, 1 ms each, are not in it."""
    running = runner(setting)
    running.ready("step", 3, 1)
    start = running.steps()
    running.run(0, 6)
    found = Trace.from_json(json.loads(json.dumps(running.end_trace())))

    assert setting.driver.launched >= 4
    assert len(found.calls) == start + 6
    for call in found.calls[start:]:
        assert {found.ops[place].node: ms for place, ms in call.times.items()} == {
            "a": 0.25,
            "b": 0.5,
        }
        assert call.total == pytest.approx(2.75)
    assert [op.module for op in found.ops] == ["head", ENGINE]


def test_a_prompt_that_takes_several_runs_is_one_call(setting: Setting) -> None:
    running = runner(setting)
    running.ready("prefill", 2 * MOST_TOKENS + 1, 1)
    start = running.steps()
    running.run(0, 2)
    found = Trace.from_json(running.end_trace())

    assert [sum(call.times.values()) for call in found.calls[start:]] == [3 * 0.75] * 2
    assert [call.total for call in found.calls[start:]] == [pytest.approx(3 * 2.75)] * 2


def test_a_session_that_is_not_traced_is_not_timed(setting: Setting) -> None:
    running = BundleRunner()
    running.load(str(setting.bundle), "trt", 1, None)
    running.ready("step", 3, 1)
    running.run(0, 3)

    assert all(context.profiler is None for context in setting.trt.contexts)


def test_an_engine_without_times_is_told(setting: Setting) -> None:
    setting.trt.layers = []
    with pytest.raises(DeviceError, match=r"no time of layers.*--no-ops"):
        runner(setting).ready("step", 3, 1)


def node(name: str, op: str, module: str) -> Node:
    return Node(name=name, op=op, module=module, inputs=(), outputs=(name,), integers={})


GRAPH = OnnxGraph(
    (
        node("n1", "MatMul", "layers.1.mlp.up"),
        node("n2", "Mul", "layers.1.mlp"),
        node("n3", "MatMul", "layers.10.mlp.up"),
        node("n4", "intaglio::LinearAttention", "layers.1.mixer"),
        node("n5", "Add", ""),
    ),
    {},
)


@pytest.mark.parametrize(
    ("name", "said", "op", "module", "nodes"),
    [
        ("x", "[ONNX Layer: n4]", "LinearAttention", "layers.1.mixer", ["n4"]),
        ("x", "[ONNX Layer: n1]\x1e[ONNX Layer: n2]", "MatMul+Mul", "layers.1.mlp", ["n1", "n2"]),
        ("x", "[ONNX Layer: n1][ONNX Layer: n3]", "MatMul", "layers", ["n1", "n3"]),
        ("x", "[ONNX Layer: n1][ONNX Layer: n5]", "MatMul+Add", "layers.1.mlp.up", ["n1", "n5"]),
        ("x", "[ONNX Layer: n1][ONNX Layer: n1]", "MatMul", "layers.1.mlp.up", ["n1"]),
        ("n1 + n2", "", "MatMul+Mul", "layers.1.mlp", ["n1", "n2"]),
        ("n5", "", "Add", "", ["n5"]),
        ("Reformatting CopyNode", "", "Reformat", ENGINE, []),
    ],
)
def test_a_layer_belongs_to_the_module_that_holds_all_its_nodes(
    name: str, said: str, op: str, module: str, nodes: list[str]
) -> None:
    """By its metadata, or by its name where it has none."""
    found = traced(name, {"LayerType": "Reformat", "Metadata": said}, GRAPH)

    assert (found.op, found.module, list(found.nodes)) == (op, module, nodes)
    assert found.fused == (len(nodes) != 1)


@pytest.mark.parametrize("said", ["", "{}", "[1]"])
def test_an_engine_that_tells_nothing_of_itself_is_refused(said: str) -> None:
    inspector = SimpleNamespace(get_engine_information=lambda _: said)
    engine = SimpleNamespace(
        trt=real, cuda_engine=SimpleNamespace(create_engine_inspector=lambda: inspector)
    )
    with pytest.raises(ProfileError, match="--no-ops"):
        layers(engine)


def test_names_alone_are_layers_too() -> None:
    """Of an engine that was built to tell no more."""
    inspector = SimpleNamespace(get_engine_information=lambda _: '{"Layers": ["a", "b"]}')
    engine = SimpleNamespace(
        trt=real, cuda_engine=SimpleNamespace(create_engine_inspector=lambda: inspector)
    )

    assert layers(engine) == [{"Name": "a"}, {"Name": "b"}]


@pytest.fixture
def gpu_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine on a stand-in GPU on which a copy takes 1 ms, and a product 4 ms."""
    monkeypatch.setattr(user_cache, "folder", lambda kind: tmp_path / kind)
    monkeypatch.setattr(ceilings, "COPIED", 1 << 20)
    monkeypatch.setattr(ceilings, "SIZE", 64)
    gpu = Driver()
    built: list[Any] = []

    def execute(stream: int) -> bool:
        def run() -> None:
            gpu.clock += 4

        gpu.enqueue(stream, run)
        return True

    context = SimpleNamespace(
        set_tensor_address=lambda _name, address: gpu.require(address, 1), execute_async_v3=execute
    )

    def deserialize(content: Any) -> Any:
        assert bytes(content)
        built.append(content)
        return SimpleNamespace(create_execution_context=lambda: context)

    return SimpleNamespace(
        trt=real,
        device=Device(gpu),
        log=logger(real),
        built=SimpleNamespace(flavour="rtx", version=real.__version__),
        runtime=SimpleNamespace(deserialize_cuda_engine=deserialize),
        products=built,
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_ceilings_are_a_copy_and_a_product_measured_once(gpu_engine: Any, dtype: str) -> None:
    """The product is an engine that TensorRT really builds; the figures are kept for next time."""
    found = ceilings.of(gpu_engine, dtype)

    assert found.bytes == pytest.approx(2 * (1 << 20) / 1e-3)
    assert found.operations == {dtype: pytest.approx(2 * 64**3 / 4e-3)}
    assert found.device == "Stand-in GPU"
    assert ceilings.of(gpu_engine, dtype) == found
    assert len(gpu_engine.products) == 1


def test_ceilings_that_were_cut_off_are_measured_again(gpu_engine: Any, tmp_path: Path) -> None:
    found = ceilings.of(gpu_engine, "float16")
    (kept,) = (tmp_path / "ceilings").iterdir()
    for content in (kept.read_bytes()[:20], b"[]", b'{"bytes": 1}'):
        kept.write_bytes(content)
        assert ceilings.of(gpu_engine, "float16") == found
    assert len(gpu_engine.products) == 4
