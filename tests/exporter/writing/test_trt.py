"""export --target trt: a real engine, built without a GPU, whose recurrences are our plugins."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from device import TensorRT
from emulator.device import Gpu
from emulator.engine import install
from gpu import Driver
from hybrid import SM
from torch import nn
from torch.nn import functional as F

from intaglio.errors import (
    DeviceError,
    NotHereError,
    OptionError,
    ParityError,
)
from intaglio.exporter import engine as engine_module
from intaglio.exporter.export import ExportReport, export
from intaglio.exporter.options.served_shapes import Shapes
from intaglio.exporter.proving.verify import verify
from intaglio.exporter.writing import trt as trt_target
from intaglio.ops import linear_attention, piecewise_linear_rnn
from intaglio.passes.graph import module_of
from intaglio.passes.lower import trt_attention
from intaglio.runtime import user_cache
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.ort.ort_engine import open_engine
from intaglio.runtime.session import Session
from intaglio.runtime.trt import driver, flavour
from intaglio.runtime.trt.engine_build import build, read_built
from intaglio.state import Layout

tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
pytest.importorskip("triton")


@pytest.fixture(scope="module", autouse=True)
def _kernels_are_kept(kernel_cache: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_cache, "folder", lambda kind: kernel_cache / kind)
        yield


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


class FreeRun(nn.Module):
    """A network that runs freely: its operator lacks two inputs between others that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.rand(6) / 2)
        self.W = nn.Parameter(torch.randn(6, 6) / 5)
        self.h = nn.Parameter(torch.randn(6))

    def forward(self, drive: torch.Tensor) -> torch.Tensor:
        states, _ = piecewise_linear_rnn(drive, self.A, self.W, self.h, num_relu=2)
        return states


def test_an_operator_may_lack_inputs(tmp_path: Path) -> None:
    """TensorRT gives no plugin a null tensor; the graph that proves the lowering runs as well."""
    torch.manual_seed(0)
    report = export(
        FreeRun(),
        tmp_path / "bundle",
        inputs={"drive": torch.randn(2, 5, 6)},
        targets=["ort", "trt"],
        sm=[SM],
        steps=20,
    )
    built = read_built(Bundle.open(report.out).graph())

    assert built is not None
    assert [x.plugin for x in built.layers if x.plugin] == ["PiecewiseLinearRNN"]


class DeltaRule(nn.Module):
    """A delta rule, which has no decay, on tokens mixed with those before them."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.rate = nn.Linear(32, 96), nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + F.pad(x, (0, 0, 1, -1))
        q, k, v = self.project(x).chunk(3, -1)
        k = F.normalize(torch.unflatten(k, -1, (2, 16)), dim=-1).flatten(2)
        beta = self.rate(x).sigmoid()
        y, _ = linear_attention(
            q, k, v, beta=beta, update_rule="delta", q_num_heads=2, kv_num_heads=2
        )
        return y


def test_operators_of_the_standard_may_lack_inputs(tmp_path: Path) -> None:
    """The decay of one, and the bias of the convolution that a token shift is."""
    torch.manual_seed(0)
    report = export(
        DeltaRule(),
        tmp_path / "bundle",
        inputs={"x": torch.randn(2, 5, 32)},
        targets=["ort", "trt"],
        sm=[SM],
        steps=20,
    )
    built = read_built(Bundle.open(report.out).graph())

    assert built is not None
    plugins = [layer.plugin for layer in built.layers if layer.plugin]
    assert plugins == ["CausalConvWithState", "LinearAttention"]


class Captioner(nn.Module):
    """An encoder of pictures, and words that attend to what it gives, in some style."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.mix = nn.Linear(6, 8), nn.Linear(8, 24)
        self.words, self.styles = nn.Embedding(11, 8), nn.Embedding(3, 8)
        self.key, self.value, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 11)

    def encode(self, regions: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = self.see(regions).relu()
        return seen

    def decode(self, ids: torch.Tensor, regions: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.styles(style)[:, None]
        q, k, v = (part[:, None] for part in self.mix(x).chunk(3, -1))
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
        seen = self.encode(regions)
        k, v = self.key(seen)[:, None], self.value(seen)[:, None]
        x = x + F.scaled_dot_product_attention(x[:, None], k, v)[:, 0]
        y: torch.Tensor = self.out(x)
        return y


def test_each_graph_has_an_engine_and_what_prepares_one_too(
    kernel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes of a condition are those of the axes, or of ``--shapes``; sessions step the engines."""
    torch.manual_seed(0)
    report = export(
        Captioner(),
        tmp_path / "bundle",
        graphs={"main": "decode", "encode": "encode"},
        inputs={
            "ids": torch.zeros(2, 7, dtype=torch.int64),
            "regions": torch.randn(2, 5, 6),
            "style": torch.tensor([0, 2]),
        },
        axes={"regions": ("batch", "regions=1..16", 6)},
        targets=["ort", "trt"],
        sm=[SM],
        steps=8,
        shapes=Shapes.parse(shapes=["ids:1x1:1x4:1x8"]),
    )
    bundle = Bundle.open(report.out)
    built = {name: read_built(each) for name, each in bundle.graphs.items()}
    profiles = {name: each.profiles[-1].shapes for name, each in built.items() if each}
    targets = {name: each.entry.targets["trt"] for name, each in bundle.graphs.items()}

    regions = ((1, 1, 6), (1, 5, 6), (1, 16, 6))
    assert profiles["encode"] == {"regions": regions}
    assert profiles["prepare"] == {"regions": regions, "style": ((1,), (1,), (1,))}
    assert list(profiles) == ["main", "encode", "prepare"]
    assert profiles["main"]["prepared.key"] == ((1, 1, 1, 8), (1, 1, 5, 8), (1, 1, 16, 8))
    assert {each.parity for each in targets.values()} == {"not run (no device)"}
    assert targets["prepare"].path == "trt/prepare/model.onnx"

    patterns = {"regions": np.random.default_rng(0).standard_normal((1, 9, 6)).astype(np.float32)}
    given = {**patterns, "style": np.array([1])}
    install(report.out, Gpu(SM), kernel_cache / "kernels", monkeypatch)
    steps = [{"ids": [[1, 2, 3]]}, {"ids": [[4]]}, {"ids": [[5]]}]
    found = []
    for target in ("trt", "ort"):
        session = Session.load(report.out, target)
        session.condition(given)
        whole = Session.load(report.out, target, graph="encode").step(patterns)
        found.append([*whole.values(), *(v for s in steps for v in session.step(s).values())])
    for got, wanted in zip(*found, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


class Recurrent(nn.Module):
    """Layers that TensorRT has loops for."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, 2, batch_first=True)
        self.gru = nn.GRU(8, 8, batch_first=True, bias=False)
        self.rnn = nn.RNN(8, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.gru(self.lstm(x)[0])[0]
        y: torch.Tensor = self.rnn(x)[0]
        return y


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_recurrent_layers_are_loops_of_tensorrt(dtype: str, tmp_path: Path) -> None:
    """One for each layer, whose nodes keep their modules; the lowered graph is verified."""
    torch.manual_seed(0)
    report = export(
        Recurrent(),
        tmp_path / "bundle",
        inputs={"x": torch.randn(2, 5, 6)},
        targets=["ort", "trt"],
        sm=[SM],
        steps=20,
        dtype=dtype,
    )
    built = read_built(Bundle.open(report.out).graph())

    assert built is not None
    assert [layer.plugin for layer in built.layers if layer.plugin] == []
    assert [layer.kind for layer in built.layers].count("TRIP_LIMIT") == 4
    nodes = [n for n in graph(report.out, "trt/model.onnx").graph if n.op_type in ("LSTM", "GRU")]
    assert [module_of(node) for node in nodes] == ["lstm", "lstm", "gru"]


def test_shapes_decide_the_profiles() -> None:
    """Trtexec's words; a dimension of another name has to be given."""
    text = """<ir_version: 10, opset_import: ["" : 24]>
        g (int64[batch, time] ids, float[batch, frames] mel) => (int64[batch, time] y)
        { y = Identity (ids) }
    """
    made = ir.from_onnx_text(text).graph
    inputs = made.inputs
    with pytest.raises(OptionError, match="the sizes of 'frames', an axis of 'mel'"):
        trt_target.ranges(inputs, Shapes.parse(), None, None)
    shapes = Shapes.parse(shapes=["ids:1x1:2x8:4x16", "mel:1x10:2x20:4x30"])
    sizes = trt_target.ranges(inputs, shapes, None, None)
    step, prefill = trt_target.profiles(made, sizes, whole=False)

    assert prefill.shapes == {
        "ids": ((1, 1), (2, 8), (4, 16)),
        "mel": ((1, 10), (2, 20), (4, 30)),
    }
    assert step.shapes["ids"] == ((1, 1), (2, 1), (4, 1))
    inputs[1].shape = ir.Shape(["batch", "4*time"])  # a token is four of its entries
    sizes = trt_target.ranges(inputs, Shapes.parse(), None, None)
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
    long = Shapes.parse(shapes=["ids:1x1:1x64:1x9000"])

    inputs, none = made.inputs, Shapes.parse()
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
