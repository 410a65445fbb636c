"""export --target trt: a real engine, built without a GPU, whose recurrences are our plugins."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from device import TensorRT
from gpu import Driver
from hybrid import SM

from intaglio.errors import (
    DeviceError,
    NotHereError,
    OptionError,
    ParityError,
)
from intaglio.exporter import engine as engine_module
from intaglio.exporter.export import ExportReport, export
from intaglio.exporter.options.clock import Clock
from intaglio.exporter.options.served_shapes import ServedShapes
from intaglio.exporter.proving.verify import verify
from intaglio.exporter.writing import trt as trt_target
from intaglio.passes.lower import trt_attention
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.ort.ort_engine import open_engine
from intaglio.runtime.session import Session
from intaglio.runtime.trt import driver, flavour
from intaglio.runtime.trt.engine_build import build, read_built
from intaglio.state import Layout

tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
pytest.importorskip("triton")


pytestmark = pytest.mark.usefixtures("kept_kernels")


@pytest.fixture(scope="module")
def in_fp16(export_hybrid: Callable[..., ExportReport]) -> ExportReport:
    """Its bundle with an engine that multiplies in fp16."""
    return export_hybrid(steps=70, dtype="fp16")


def graph(bundle: Path, name: str) -> ir.Model:
    return ir.load(bundle / name)


def test_every_recurrence_is_a_plugin_of_ours(hybrid_engine: ExportReport) -> None:
    """No recurrence falls apart into loops, and the engine is there."""
    bundle = Bundle.open(hybrid_engine.out)
    built = read_built(bundle.graph())
    assert built is not None
    recurrent = {
        node.name: node.op_type
        for node in graph(hybrid_engine.out, "trt/model.onnx").graph
        if node.op_type in ("LinearAttention", "CausalConvWithState")
    }
    plugins = {layer.name: layer.plugin for layer in built.layers if layer.plugin}

    assert plugins == recurrent
    assert sorted(set(plugins.values())) == ["CausalConvWithState", "LinearAttention"]
    assert {layer.kind for layer in built.layers if layer.plugin} == {"PLUGIN_V3"}
    assert not [layer for layer in built.layers if "LOOP" in layer.kind or "RECUR" in layer.kind]
    assert (hybrid_engine.out / "trt/engine.plan").stat().st_size == built.bytes
    assert built.flavour == "rtx"
    assert built.capabilities == (SM,)


def test_bindings_are_those_of_the_graph_for_onnx_runtime(hybrid_engine: ExportReport) -> None:
    """Inputs, outputs and states by name, dtype and shape; a cache has a size, -1 is dynamic."""
    built = read_built(Bundle.open(hybrid_engine.out).graph())
    assert built is not None
    names = {"FLOAT": "FLOAT", "INT64": "INT64"}

    def bindings(values: Any) -> dict[str, Any]:
        return {
            value.name: (
                value.dtype.name,
                tuple(
                    dim if isinstance(dim, int) else 4096 if dim.value == "capacity" else -1
                    for dim in value.shape
                ),
            )
            for value in values
        }

    lowered = graph(hybrid_engine.out, "ort/model.onnx").graph
    found = {each.name: (names[each.dtype], each.shape) for each in built.inputs}
    assert found == bindings(lowered.inputs)
    found = {each.name: (names[each.dtype], each.shape) for each in built.outputs}
    assert found.keys() == {value.name for value in lowered.outputs}
    states = {
        spec.output for spec in Manifest.load(hybrid_engine.out / "manifest.json").main.states
    }
    wanted = bindings(value for value in lowered.outputs if value.name in states)
    assert {name: found[name][0] for name in states} == {n: wanted[n][0] for n in states}


def test_what_has_not_run_is_never_called_parity(hybrid_engine: ExportReport) -> None:
    """The engine's own target says so, whatever ONNX Runtime proved."""
    targets = hybrid_engine.manifest.main.targets

    assert targets["ort"].parity == "passed"
    assert targets["trt"].parity == "not run (no device)"


def test_weights_are_shared_with_the_other_graphs(hybrid_engine: ExportReport) -> None:
    """What the graph for TensorRT adds is its own small data."""
    files = hybrid_engine.manifest.files
    assert "trt/model.onnx.data" not in files
    assert hybrid_engine.manifest.main.targets["trt"].data == ("model.onnx.data",)
    assert any(name.endswith(f".sm_{SM}.cubin") for name in files)


def test_two_profiles_cover_step_and_prefill(hybrid_engine: ExportReport) -> None:
    """One token for the step; up to 512 for prefill."""
    built = read_built(Bundle.open(hybrid_engine.out).graph())
    assert built is not None

    step, prefill = built.profiles
    assert step.shapes["input_ids"] == ((1, 1), (1, 1), (1, 1))
    assert prefill.shapes["input_ids"] == ((1, 1), (1, 64), (1, 512))
    assert prefill.shapes["past_key_values.1.key"] == ((1, 2, 4096, 16),) * 3


def test_an_engine_is_verified_where_it_can_run(
    hybrid_engine: ExportReport, hybrid_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one row, as it was built for; a stand-in for the GPU computes what its graph says."""
    bundle = Bundle.open(hybrid_engine.out)
    built = read_built(bundle.graph())
    assert built is not None
    gpu = Driver(SM)
    graph = open_engine(bundle.graph(), "trt", 1)
    TensorRT(tensorrt_rtx, gpu, graph, built.profiles).install(monkeypatch)
    report = verify(bundle.root, hybrid_checkpoint, target="trt", steps=70, keep=False)

    assert report.passed
    assert report.batch == 1
    assert gpu.launched >= 60


def test_an_engine_in_fp16_keeps_recurrent_states_in_fp32(in_fp16: ExportReport) -> None:
    """Caches are fp16 for TensorRT alone; weights are data of its own."""
    manifest = in_fp16.manifest
    built = read_built(Bundle.open(in_fp16.out).graph())
    assert built is not None
    found = {tensor.name: tensor.dtype for tensor in (*built.inputs, *built.outputs)}
    names = {"float16": "HALF", "float32": "FLOAT"}

    for spec in manifest.main.states_of("trt"):
        wanted = names["float32" if spec.layout is Layout.RECURRENT else "float16"]
        assert (found[spec.input], found[spec.output]) == (wanted, wanted)
    assert found["logits"] == "FLOAT"
    assert {spec.dtype for spec in manifest.main.states_of("ort")} == {"float32"}
    assert {layer.plugin for layer in built.layers} >= {"LinearAttention", "CausalConvWithState"}
    weights = graph(in_fp16.out, "trt/model.onnx").graph.initializers.values()
    assert {str(v.dtype) for v in weights if v.shape and len(v.shape) > 1} == {"FLOAT16"}


def test_sessions_and_parity_know_the_dtype_of_a_target(
    in_fp16: ExportReport, hybrid_checkpoint: Path
) -> None:
    """The graph that the engine is made of, held to the limit of fp16."""
    report = verify(in_fp16.out, hybrid_checkpoint, lowered=True, steps=70, keep=False)

    assert report.passed
    assert {row.found.limit for row in report.rows} == {2e-2}
    assert report.worst.found.error > 1e-4
    states = Session.load(in_fp16.out, threads=1)
    states.step({"input_ids": [[1, 2]]})
    assert {array.dtype for array in states.state.save().arrays.values()} == {np.dtype(np.float32)}


@pytest.mark.gpu
@pytest.mark.skipif(not flavour.has_device(), reason="runs an engine, which takes a GPU")
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_an_engine_runs_on_the_gpu_that_is_here(
    hybrid_checkpoint: Path, tmp_path: Path, dtype: str
) -> None:
    """The real library, driver and kernels, over prefill, single steps and captured ones."""
    here = driver.open_device().capability
    report = export(
        hybrid_checkpoint, tmp_path / "b", targets=["ort", "trt"], sm=[here], steps=70, dtype=dtype
    )

    assert report.manifest.main.targets["trt"].parity == "passed", report.notes


@pytest.mark.parametrize(
    ("found", "verdict"),
    [("passes", "passed"), ("fails", "failed"), ("refuses", "not run (see the notes)")],
)
def test_an_engine_has_its_own_verdict(
    monkeypatch: pytest.MonkeyPatch, found: str, verdict: str
) -> None:
    """Where there is a GPU; an engine that cannot run there is no failure, and no parity."""

    def verified(*, lowered: bool) -> Any:
        if found == "refuses" and not lowered:
            raise DeviceError("it is for another GPU")
        passed = lowered or found == "passes"
        return SimpleNamespace(passed=passed, summary=lambda: "of parity")

    monkeypatch.setattr(flavour, "has_device", lambda: True)
    assert engine_module._proven(False, verified)[0] == "not run (no device)"
    said, fault, notes = engine_module._proven(True, verified)

    assert said == verdict
    assert fault == ("The engine of TensorRT: of parity" if found == "fails" else "")
    assert notes == (
        ("The engine did not run here: it is for another GPU",) if found == "refuses" else ()
    )


def test_parity_that_is_required_of_an_engine_fails(
    hybrid_checkpoint: Path, tmp_path: Path
) -> None:
    """Nothing here can run it; the attempt is kept."""
    with pytest.raises(ParityError, match="engine of TensorRT has not run"):
        export(
            hybrid_checkpoint,
            tmp_path / "b",
            targets=["trt"],
            sm=[SM],
            steps=4,
            require_parity=True,
        )
    assert not (tmp_path / "b").exists()
    assert (tmp_path / "b.failed" / "trt" / "engine.plan").exists()


def test_without_tensorrt_the_bundle_says_how_it_is_finished(
    hybrid_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graph and kernels are there; the one command finishes it."""
    monkeypatch.setattr(flavour, "FLAVOURS", {})
    report = export(hybrid_checkpoint, tmp_path / "b", targets=["trt"], sm=[SM], verify=False)

    assert any("intaglio build" in note for note in report.notes)
    assert read_built(Bundle.open(report.out).graph()) is None
    monkeypatch.undo()
    build(Bundle.open(report.out).graph())
    assert read_built(Bundle.open(report.out).graph()) is not None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": ["tpu"]}, OptionError, "There is no target 'tpu'; there are: ort, trt"),
        ({"targets": ["trt"], "flavour": "tensorrt"}, OptionError, "which is not installed"),
        ({"targets": ["trt"], "sm": [70]}, Exception, r"layers\.0\..*no kernels for compute cap"),
    ],
)
def test_what_cannot_be_built_is_refused(
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    hybrid_checkpoint: Path,
    tmp_path: Path,
) -> None:
    """Nothing is left behind."""
    with pytest.raises(error, match=message):
        export(hybrid_checkpoint, tmp_path / "b", verify=False, **options)
    assert list(tmp_path.iterdir()) == []


def test_shapes_decide_the_profiles() -> None:
    """Trtexec's words; a dimension of another name has to be given."""
    text = """<ir_version: 10, opset_import: ["" : 24]>
        g (int64[batch, time] ids, float[batch, frames] mel) => (int64[batch, time] y)
        { y = Identity (ids) }
    """
    made = ir.from_onnx_text(text).graph
    inputs = made.inputs
    with pytest.raises(OptionError, match="the sizes of 'frames', an axis of 'mel'"):
        trt_target.ranges(inputs, ServedShapes.parse(), None, None)
    shapes = ServedShapes.parse(shapes=["ids:1x1:2x8:4x16", "mel:1x10:2x20:4x30"])
    sizes = trt_target.ranges(inputs, shapes, None, None)
    step, prefill = trt_target.profiles(made, sizes, whole=False)

    assert prefill.shapes == {
        "ids": ((1, 1), (2, 8), (4, 16)),
        "mel": ((1, 10), (2, 20), (4, 30)),
    }
    assert step.shapes["ids"] == ((1, 1), (2, 1), (4, 1))
    inputs[1].shape = ir.Shape(["batch", "4*time"])  # a token is four of its entries
    sizes = trt_target.ranges(inputs, ServedShapes.parse(), None, None)
    step, prefill = trt_target.profiles(made, sizes, whole=False)
    assert step.shapes["mel"] == ((1, 4), (1, 4), (1, 4))
    assert prefill.shapes["mel"] == ((1, 4), (1, 256), (1, 2048))


def test_nodes_find_their_kernels_by_domain_and_type() -> None:
    """Standard operators among them, under the names that TensorRT's importer looks for."""
    found = trt_target.plugin_ops()

    assert found["", "LinearAttention"].name == "linear_attention"
    assert found["", "CausalConvWithState"].name == "causal_conv_with_state"
    assert found["intaglio", "AffineLowBitMatMul"].name == "affine_low_bit_mat_mul"


def test_a_graph_that_is_lowered_wrongly_fails_the_export(
    hybrid_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a mask that hides the newest token; the graph for ONNX Runtime is right."""

    def hide(node: ir.Node, valid: ir.Value | None) -> ir.Value:
        mask = allowed(node, valid)
        producer = mask.producer()
        assert producer is not None
        producer.op_type = "Less"
        return mask

    allowed = trt_attention._allowed
    monkeypatch.setattr(trt_attention, "_allowed", hide)
    with pytest.raises(ParityError, match=r"^The graph for TensorRT, run by ONNX Runtime: Parity"):
        export(hybrid_checkpoint, tmp_path / "b", targets=["trt"], sm=[SM], steps=8)
    assert (tmp_path / "b.failed").exists()


def test_a_gpu_that_rtx_does_not_know_leaves_the_engine_to_it(
    hybrid_checkpoint: Path, tmp_path: Path
) -> None:
    """Kernels for a Jetson, and no engine that is for none."""
    report = export(hybrid_checkpoint, tmp_path / "b", targets=["trt"], sm=[87], verify=False)

    assert any("not for 87" in note and "intaglio build" in note for note in report.notes)
    assert read_built(Bundle.open(report.out).graph()) is None
    assert any(name.endswith(".sm_87.cubin") for name in report.manifest.files)
    with pytest.raises(NotHereError, match="builds for compute capability 75, 80"):
        build(Bundle.open(report.out).graph())


def test_a_cache_holds_the_longest_prefill() -> None:
    """More than the default, never more than the model's context."""
    made = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 24]>
        g (int64[batch, time] ids) => (int64[batch, time] y) { y = Identity (ids) }
    """).graph
    long = ServedShapes.parse(shapes=["ids:1x1:1x64:1x9000"])

    inputs, none = made.inputs, ServedShapes.parse()
    assert trt_target.ranges(inputs, long, None, None)["capacity"] == (9000,) * 3
    assert trt_target.ranges(inputs, none, 200, None)["capacity"] == (200,) * 3
    assert trt_target.ranges(inputs, none, 200, None)["time"] == (1, 64, 200)
    halved = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, frames] mel, float[batch, n] kept) => (float[batch, n] y)
        { y = Identity (kept) }
    """).graph
    halved.inputs[1].shape = ir.Shape(["batch", "(frames - 1)//2 + 1"])
    found = trt_target.ranges(halved.inputs, none, None, None, {"frames": (1, 20, 99)})
    assert found["(frames - 1)//2 + 1"] == (1, 10, 50)


def test_kernels_are_compiled_by_so_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `jobs` of an export says; what each compiles follows from the request alone."""
    asked: list[int | None] = []

    def compile_all(_: list[Any], *, workers: int | None, **__: Any) -> list[Any]:
        asked.append(workers)
        return []

    monkeypatch.setattr("intaglio.trt_plugins.ahead.compile_all", compile_all)
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 24}), ir_version=11)
    for jobs in (None, 3):
        trt_target.compile_kernels(model, [86, 89], Clock(None), jobs)
    assert asked == [None, 3]
