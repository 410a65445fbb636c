"""RWKV-7: the equations of its paper, two layouts of its checkpoints, an engine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recurrences import Array, Weights, sigmoid, weights_of
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.exporter.export import ExportReport, export
from intaglio.exporter.sources.load import load_source
from intaglio.models import CheckpointLayout, Model, find
from intaglio.models.rwkv7 import Config, build
from intaglio.runtime import Session

DATA = Path(__file__).parents[1] / "data" / "keys"
MODEL: Model = find("rwkv7")
FILES, FLA, _ = MODEL.layouts
KEYS = {
    layout.name: json.loads((DATA / f"{name}.json").read_text())
    for layout, name in ((FILES, "rwkv7"), (FLA, "rwkv7_fla"))
}
SMALL = Config(
    vocab_size=20,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    head_size=8,
    decay_rank=3,
    rate_rank=4,
    value_rank=5,
    gate_rank=6,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def shaken() -> nn.Module:
    """A model in which every parameter counts."""
    torch.manual_seed(1)
    module = build(SMALL).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def normed(x: Array, eps: float) -> Array:
    return np.asarray((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps))


def norm(w: Weights, name: str, x: Array) -> Array:
    return normed(x, 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


class Layer:
    """One layer of the paper with its state, S [V, K] for each head, token by token."""

    def __init__(self, w: Weights, name: str) -> None:
        start = f"{name}."
        self.w = {n.removeprefix(start): x for n, x in w.items() if n.startswith(start)}
        self.last = {"att": np.zeros(16), "ffn": np.zeros(16)}
        self.state = np.zeros((2, 8, 8))

    def mixed(self, part: str, name: str, x: Array) -> Array:
        return np.asarray(x + self.w[f"{part}.x_{name}"] * (self.last[part] - x))

    def gate(self, name: str, inner: Array) -> Array:
        return sigmoid(self.w[f"att.{name}0"] + inner @ self.w[f"att.{name}2"])

    def time(self, x: Array, first: Array | None) -> tuple[Array, Array]:
        w, at = self.w, {name: self.mixed("att", name, x) for name in "rwkvag"}
        r, k, v = (w[f"att.{name}.weight"] @ at[name[0]] for name in ("receptance", "key", "value"))
        if first is None:
            first = v
        else:
            v = v + (first - v) * self.gate("v", at["v"] @ w["att.v1"])
        a = self.gate("a", at["a"] @ w["att.a1"])
        decay = np.exp(-np.exp(-0.5) * self.gate("w", np.tanh(at["w"] @ w["att.w1"])))
        g = sigmoid(at["g"] @ w["att.g1"]) @ w["att.g2"]
        h = (k * w["att.k_k"]).reshape(2, 8)
        h = h / np.linalg.norm(h, axis=1, keepdims=True)
        k = k * (1 + (a - 1) * w["att.k_a"])
        r, k, v, a, decay = (y.reshape(2, 8) for y in (r, k, v, a, decay))
        transition = np.stack([np.diag(d) for d in decay]) - h[:, :, None] * (a * h)[:, None, :]
        self.state = self.state @ transition + v[:, :, None] * k[:, None, :]
        y = normed(np.einsum("hvk,hk->hv", self.state, r), 8e-5).reshape(-1)
        y = y * w["att.ln_x.weight"] + w["att.ln_x.bias"]
        y = y + ((r * k * w["att.r_k"]).sum(1, keepdims=True) * v).reshape(-1)
        return np.asarray(w["att.output.weight"] @ (y * g)), first

    def __call__(self, x: Array, first: Array | None) -> tuple[Array, Array]:
        x = norm(self.w, "ln0", x) if "ln0.weight" in self.w else x
        given = norm(self.w, "ln1", x)
        y, first = self.time(given, first)
        self.last["att"], x = given, x + y
        given = norm(self.w, "ln2", x)
        inner = self.w["ffn.key.weight"] @ self.mixed("ffn", "k", given)
        self.last["ffn"] = given
        return x + self.w["ffn.value.weight"] @ np.maximum(inner, 0) ** 2, first


def test_the_model_is_the_recurrence_of_the_paper() -> None:
    """Token by token in NumPy: the transition as a matrix, a state for each layer and head."""
    module = shaken().double()
    w = weights_of(module)
    ids = np.random.default_rng(0).integers(20, size=40)
    layers = [Layer(w, f"blocks.{n}") for n in range(2)]
    rows = []
    for token in ids:
        x, first = w["emb.weight"][token], None
        for layer in layers:
            x, first = layer(x, first)
        rows.append(w["head.weight"] @ norm(w, "ln_out", x))

    with torch.no_grad():
        found = module(torch.from_numpy(ids)[None])[0].numpy()
    np.testing.assert_allclose(found, np.stack(rows), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", [FILES, FLA], ids=lambda layout: layout.name)
def test_official_names_and_shapes_at_full_size_fit(layout: CheckpointLayout) -> None:
    """Each tensor of 0.19 billion parameters is one of ours, but the first layer's residual."""
    values, shapes = KEYS[layout.name]["config"], KEYS[layout.name]["keys"]
    assert [each.name for each in MODEL.layouts if each.fits(values, shapes)] == [layout.name]
    config = MODEL.configure(layout.configure(values, shapes))
    with torch.device("meta"):
        module = build(config)
        tensors = Asked({name: torch.empty(shape) for name, shape in shapes.items()})
    found = layout.weights(tensors, config)

    assert {n: tuple(t.shape) for n, t in found.items()} == {
        n: tuple(t.shape) for n, t in module.state_dict().items()
    }
    assert tensors.asked == set(shapes)
    assert (config.head_size, config.decay_rank, config.value_rank) == (64, 64, 32)


class Asked(dict[str, Tensor]):
    """Tensors of a file, and which of them were asked for."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__(tensors)
        self.asked = set[str]()

    def __getitem__(self, name: str) -> Tensor:
        self.asked.add(name)
        return super().__getitem__(name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """A file as the authors' code writes it, verified."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("rwkv7")
    vectors = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "v0", "k_k", "k_a")
    state = {
        name: x[None, None] if name.rpartition(".")[2] in vectors else x
        for name, x in shaken().state_dict().items()
    }
    unused = {"v0": (1, 1, 16), "v1": (16, 5), "v2": (5, 16)}
    state |= {f"blocks.0.att.{name}": torch.ones(shape) for name, shape in unused.items()}
    torch.save(state, folder / "model.pth")
    return export(folder / "model.pth", folder / "bundle", steps=40)


def test_the_engine_carries_a_matrix_for_each_head_and_the_token_before(
    exported: ExportReport,
) -> None:
    """Two token shifts a layer, in front of time mixing and of channel mixing."""
    assert exported.parity is not None
    assert exported.parity.passed
    shapes = sorted(state.shape[1:] for state in exported.manifest.main.states)
    assert shapes == sorted([(2, 8, 8), (16, 1), (16, 1)] * 2)
    assert [s.op for s in exported.manifest.main.states].count("dplr_delta_rule") == 2


def test_parts_and_unequal_rows_give_what_whole_rows_give(exported: ExportReport) -> None:
    tokens = np.random.default_rng(0).integers(20, size=(2, 30))
    expected = Session.load(exported.out).step({"input_ids": tokens})["logits"]
    parted = Session.load(exported.out)
    pieces = [parted.step({"input_ids": tokens[:, t : t + 1]})["logits"] for t in range(9)]
    unequal = parted.step({"input_ids": tokens[:, 9:15]}, lengths=[6, 2])["logits"]

    np.testing.assert_allclose(np.concatenate(pieces, 1), expected[:, :9], atol=2e-5)
    np.testing.assert_allclose(unequal[0], expected[0, 9:15], atol=2e-5)
    np.testing.assert_allclose(unequal[1, :2], expected[1, 9:11], atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act = 'silu'"),
        ({"attn": {"layers": [1]}}, "attn = "),
        ({"norm_bias": False}, "norm_bias = False"),
        ({"value_dim": 1536}, "value_dim = 1536"),
        ({"head_dim": None, "num_heads": 7}, "num_heads = 7"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000, above"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        FLA.configure({**KEYS["fla"]["config"], **changes}, {})


@pytest.mark.parametrize(
    ("part", "version"), [("time_maa_x", 6), ("time_faaaa", 5), ("time_first", 4)]
)
def test_earlier_versions_are_told_apart_and_refused(
    part: str, version: int, tmp_path: Path
) -> None:
    torch.save({f"blocks.0.att.{part}": torch.ones(4)}, tmp_path / "model.pth")
    with pytest.raises(SourceError, match=f"these are weights of RWKV-{version}, whose recurrence"):
        load_source(tmp_path / "model.pth")
    fitting = [
        each.name for each in MODEL.layouts if each.fits({"model_type": f"rwkv{version}"}, ())
    ]
    assert fitting == ["earlier"]


def test_the_norm_that_the_library_fuses_has_a_floor() -> None:
    for fused, floor in ((True, 1e-6), (False, 0.0)):
        values = {**KEYS["fla"]["config"], "fuse_norm": fused}
        assert FLA.configure(values, {})["key_floor"] == floor


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(hidden_size=20, head_size=8), "head_size 8 does not divide hidden_size 20"),
        (Config(num_layers=0), "num_layers"),
    ],
)
def test_configs_that_make_no_model_are_refused(config: Config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(config)
