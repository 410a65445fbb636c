"""The proof of every group: a random permutation of it leaves all outputs as they were."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from mixers import HEADS, SIZE, Attention, Convolution, D, Recurrence, Residual
from torch import Tensor, nn
from torch.nn import functional as F
from traced import Traced

from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.trace import trace
from intaglio.models import MODELS
from intaglio.passes import evaluate, pipeline, stepping
from intaglio.passes.analysis.coupling import Coupling, couplings, permute
from intaglio.passes.base import Context

LIMIT = 2e-5  # of the largest output; a wrong order moves it by far more, rounding by far less

Groups = dict[str, Coupling]


def proven(model: ir.Model, feeds: Mapping[str, Any], *, alone: bool = True) -> Groups:
    """The groups of `model`, all of them permuted together, and each alone where that is asked."""
    groups = couplings(model)
    assert groups
    wanted = evaluate.run(model, feeds)
    random = np.random.default_rng(0)
    orders = {group.name: random.permutation(group.size) for group in groups}
    for name in (*orders, None) if alone else (None,):
        twin = model.clone()
        permute(twin, groups, orders if name is None else {name: orders[name]})
        found = evaluate.run(twin, feeds)
        for output, reference in wanted.items():
            error = np.abs(found[output] - reference).max() / np.abs(reference).max()
            assert error <= LIMIT, name
    return {group.name: group for group in groups}


def tidied(model: ir.Model, context: Context) -> ir.Model:
    pipeline.run(model, pipeline.tidy(), context)
    return model


def of_tokens(module: nn.Module, traced: Traced) -> Groups:
    model = tidied(*traced(_shaken(module)))
    return proven(model, stepping.random_inputs(model, [], {"batch": 2, "time": 9}), alone=False)


def whole(module: nn.Module, x: Tensor, axes: str) -> Groups:
    source = load_source(_shaken(module).eval(), inputs={"x": x}, axes=[axes], whole=True)
    model = tidied(trace(source).model, Context())
    return proven(model, {"x": x.numpy()})


def _shaken(module: nn.Module) -> nn.Module:
    """`module` with no two entries of a tensor alike: equal ones hide a wrong order."""
    generator = torch.Generator().manual_seed(0)
    tensors = [*module.parameters(), *module.buffers()]
    with torch.no_grad():
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
    return module


def sizes(groups: Groups) -> dict[str, tuple[int, int]]:
    return {name: (group.size, group.block) for name, group in groups.items()}


def test_every_mixer(traced: Traced) -> None:
    """One model of all spellings: each has groups of its own, and the stream is one more."""
    torch.manual_seed(0)
    mixers = [
        Attention(manual=True),
        Attention(repeat="expand"),
        Attention(repeat="interleave"),
        Attention("", window=3),
        Convolution("pad"),
    ]
    groups = of_tokens(Residual(*mixers), traced)

    for place in range(4):
        found = [group for name, group in groups.items() if name.startswith(f"layers.{place}")]
        assert {group.size for group in found} >= {2, 8}  # heads; channels of values
        assert sum(group.size == 2 for group in found) == 2
    assert [group.size for group in groups.values()].count(D) == 1
    assert any(group.size == 4 for group in groups.values())  # pairs that are turned alike


def test_recurrences_and_grouped_convolutions(traced: Traced) -> None:
    """Without a projection behind the mixer, the stream is its heads and their channels."""
    torch.manual_seed(0)
    mixers = [Recurrence("linear"), Recurrence("gated_delta"), Convolution("pad", groups=4)]
    groups = of_tokens(Residual(*mixers), traced)

    assert sorted(group.size for group in groups.values()) == [HEADS, SIZE, SIZE, SIZE]


def test_attention_has_heads_pairs_and_channels(traced: Traced) -> None:
    torch.manual_seed(0)
    found = sizes(of_tokens(Residual(Attention()), traced))

    assert found["layers.0"] == (2, 16)  # the heads that share keys and values
    assert (2, 16) in [found[f"layers.0#{n}"] for n in (2, 3)]  # those of one group
    assert 4 in [size for size, _ in found.values()]  # pairs that are turned alike
    assert sorted(size for size, _ in found.values()) == [2, 2, 4, 8, D]


@pytest.mark.parametrize(
    "name", [model.name for model in MODELS if model.name in ("gla", "gated-deltanet")]
)
def test_models(name: str) -> None:
    """Those of `models/` whose mixers are not in the list above."""
    (entry,) = (model for model in MODELS if model.name == name)
    config = entry.configure({"num_layers": 2, "hidden_size": 32, "intermediate_size": 40})
    torch.manual_seed(0)
    module = _shaken(entry.build(config)).eval()
    inputs = entry.inputs(config, 2, 9, torch.Generator().manual_seed(0))
    source = load_source(module, inputs=inputs, axes=["input_ids:batchxtime<256"])
    model = tidied(trace(source).model, Context())
    groups = proven(model, {key: value.numpy() for key, value in inputs.items()})
    assert groups["layers.1.mlp"].weights == (
        "layers.1.mlp.gate_proj.weight",
        "layers.1.mlp.up_proj.weight",
        "layers.1.mlp.down_proj.weight",
    )


class Bottleneck(nn.Module):
    """A residual block of convolutions with batch norms, as ResNets have."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.down = nn.Sequential(
            nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.down(x) + y)


class ResNet(nn.Module):
    """Two stages, the second with depthwise and grouped convolutions and a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.one, self.two = Bottleneck(8, 8, 1), Bottleneck(8, 12, 2)
        self.depthwise = nn.Conv2d(12, 12, 3, 1, 1, groups=12)
        self.grouped = nn.Conv2d(12, 12, 3, 1, 1, groups=3)
        self.norm = nn.GroupNorm(3, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(F.relu(self.stem(x))))
        x = x + F.silu(self.depthwise(x))
        x = x + self.norm(self.grouped(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_a_resnet_has_one_group_a_stage_and_one_within_each_block() -> None:
    groups = whole(ResNet(), torch.randn(2, 3, 9, 9), "x:batchx3x9x9")

    assert sorted(group.size for group in groups.values()) == [3, 4, 8, 8, 8, 12]
    names = {f"one.bn1.{kind}" for kind in ("weight", "bias", "running_mean", "running_var")}
    assert any(names <= set(group.weights) for group in groups.values())


def test_a_flattened_picture_is_blocks_of_places() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 10, 3, padding=1),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(40, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    )
    found = sizes(whole(_Named(net), torch.randn(2, 3, 8, 8), "x:batchx3x8x8"))

    assert sorted(found.values()) == [(8, 1), (10, 4), (16, 1)]


class _Named(nn.Module):
    """`net` with the name x for its input."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


def test_an_mlp_with_a_norm_between() -> None:
    net = nn.Sequential(nn.Linear(7, 16), nn.LayerNorm(16), nn.Linear(16, 12), nn.GELU())
    head = nn.Linear(12, 3)
    found = whole(_Named(nn.Sequential(*net, head)), torch.randn(4, 7), "x:batchx7")

    assert sorted(sizes(found).values()) == [(12, 1), (16, 1)]


def test_queries_keys_and_values_of_one_weight_are_apart() -> None:
    """`nn.TransformerEncoderLayer` has one matrix for all three."""
    layer = nn.TransformerEncoderLayer(16, HEADS, 24, dropout=0.0, batch_first=True)
    net = nn.Sequential(nn.Linear(7, 16), layer, nn.Linear(16, 3))
    found = whole(_Named(net), torch.randn(2, 5, 7), "x:batchxtimex7")
    blocks = sorted(sizes(found).values())

    assert blocks == [(4, 4), (4, 8), (4, 12), (16, 1), (24, 1)]


class Mixed(nn.Module):
    """A hidden channel is read by its number: no permutation is free."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x).cumsum(-1))
        return y


def test_what_channels_stand_in_an_order_for_is_fixed() -> None:
    source = load_source(
        Mixed().eval(), inputs={"x": torch.randn(4, 7)}, axes=["x:batchx7"], whole=True
    )
    assert couplings(tidied(trace(source).model, Context())) == []


def test_a_state_of_a_loop_is_permuted_with_what_makes_it() -> None:
    text = """<ir_version: 11, opset_import: ["" : 23]>
    main (float[time, 3] x) => (float[time, 2] y)
    <float[3, 4] a = {%s}, float[4, 2] b = {%s}, float[4] start = {0, 0, 0, 0}>
    {
        drive = MatMul (x, a)
        last, all = Scan <num_scan_inputs = 1, body = cell
            (float[4] h, float[4] u) => (float[4] next, float[4] out) {
                sum = Add (h, u)
                next = Tanh (sum)
                out = Identity (next)
            }> (start, drive)
        y = MatMul (all, b)
    }"""
    numbers = [", ".join(f"{(7 * i) % 11 / 10}" for i in range(n)) for n in (12, 8)]
    model = ir.from_onnx_text(text % tuple(numbers))
    shapes: dict[str, list[int | str]] = {"drive": ["time", 4], "last": [4], "all": ["time", 4]}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = ir.Shape(shapes.get(value.name or "", [4]))
    model.graph.outputs[0].shape = ir.Shape(["time", 2])
    groups = proven(model, {"x": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)})

    assert [group.size for group in groups.values()] == [4]
    assert {"a", "b"} <= set(next(iter(groups.values())).weights)
