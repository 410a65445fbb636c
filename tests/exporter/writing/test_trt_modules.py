"""Engines of modules as users write them: absent inputs, several graphs, loops of TensorRT."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from emulator.device import Gpu
from emulator.engine import install
from hybrid import SM
from torch import nn
from torch.nn import functional as F

from intaglio.exporter.export import export
from intaglio.exporter.options.served_shapes import ServedShapes
from intaglio.ops import linear_attention, piecewise_linear_rnn
from intaglio.passes.graph import module_of
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.session import Session
from intaglio.runtime.trt.engine_build import read_built

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("kept_kernels")


def graph(bundle: Path, name: str) -> ir.Model:
    return ir.load(bundle / name)


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
        shapes=ServedShapes.parse(shapes=["ids:1x1:1x4:1x8"]),
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
