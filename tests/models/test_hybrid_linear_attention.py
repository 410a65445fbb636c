"""Hybrids: each mixer is its paper's recurrence, and official checkpoints become step engines."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recurrences import (
    Array,
    Weights,
    carried,
    convolved,
    linear,
    rms,
    rotated,
    sigmoid,
    silu,
    softplus,
    unit,
    weights_of,
)
from safetensors.torch import load_file, save_file
from torch import nn

from intaglio.errors import SourceError
from intaglio.exporter.export import ExportReport, export
from intaglio.exporter.sources.load import load_source
from intaglio.models import Model, find, save
from intaglio.models.hybrid_linear_attention import MIXERS, Config, build
from intaglio.models.parts import fla_checkpoints
from intaglio.models.parts.linear_mixers import forget_gate
from intaglio.runtime import Session

KEYS = json.loads(
    (Path(__file__).parents[1] / "data" / "keys" / "hybrid_linear_attention.json").read_text()
)
MODEL: Model = find("hybrid-linear-attention")
(LAYOUT,) = MODEL.layouts
SMALL = Config(
    layers=("gated-deltanet", "gla", "retnet", "hgrn", "hgrn2", "deltanet", "attention"),
    vocab_size=16,
    hidden_size=16,
    intermediate_size=24,
    num_heads=2,
    key_size=8,
    value_size=8,
    conv_size=3,
    gate_rank=4,
    attention_heads=2,
    attention_kv_heads=1,
    window=5,
)
TOKENS = np.random.default_rng(0).integers(16, size=(3, 40))


def shaken(module: nn.Module) -> nn.Module:
    """The module with weights in which every parameter counts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def heads(x: Array, count: int) -> Array:
    return x.reshape(len(x), count, -1)


def gated(w: Weights, norm: str, y: Array, x: Array, eps: float) -> Array:
    """RMS norm of each head, gated where there is a gate, projected."""
    z = rms(y, w[f"{norm}.weight"], eps).reshape(len(y), -1)
    return linear(w, "o_proj", z * silu(linear(w, "g_proj", x)) if "g_proj.weight" in w else z)


def projected(w: Weights, x: Array, act: Callable[[Array], Array]) -> list[Array]:
    rows = (convolved(w, f"{n}_conv1d", linear(w, f"{n}_proj", x)) for n in "qkv")
    return [act(row) for row in rows]


def retnet(w: Weights, x: Array, c: Config) -> Array:
    q, k, v = projected(w, x, lambda y: y)
    k, v = (np.repeat(heads(y, c.num_kv_heads or 2), 2 // (c.num_kv_heads or 2), 1) for y in (k, v))
    decay = np.broadcast_to(1 - 2.0 ** (-5 - np.arange(2))[:, None], (len(x), 2, 1))
    return gated(w, "g_norm", carried(rotated(heads(q, 2)), rotated(k), v, decay), x, c.norm_eps)


def gla(w: Weights, x: Array, c: Config) -> Array:
    q, k, v = projected(w, x, silu if c.conv_size else lambda y: y)
    log = -softplus(-linear(w, "gk_proj.1", linear(w, "gk_proj.0", x))) / 16
    log = log if c.gate_floor is None else np.maximum(log, c.gate_floor)
    kv = c.num_kv_heads or 2
    k, v, log = (np.repeat(heads(y, kv), 2 // kv, 1) for y in (k, v, log))
    return gated(w, "g_norm", carried(heads(q, 2), k, v, np.exp(log)), x, c.norm_eps)


def deltanet(w: Weights, x: Array, c: Config) -> Array:
    q, k, v = (heads(y, 2) for y in projected(w, x, silu))
    beta = sigmoid(linear(w, "b_proj", x)) * (2 if c.reflecting else 1)
    y = carried(unit(q), unit(k), v, np.ones((len(x), 2, 1)), beta)
    return gated(w, "o_norm", y, x, c.norm_eps)


def gated_deltanet(w: Weights, x: Array, c: Config) -> Array:
    q, k, v = projected(w, x, silu)
    values = c.num_value_heads or 2
    q, k = (np.repeat(unit(heads(y, 2)), values // 2, 1) for y in (q, k))
    decay = np.exp(-np.exp(w["A_log"]) * softplus(linear(w, "a_proj", x) + w["dt_bias"]))
    beta = sigmoid(linear(w, "b_proj", x)) * (2 if c.reflecting else 1)
    return gated(
        w, "o_norm", carried(q, k, heads(v, values), decay[..., None], beta), x, c.norm_eps
    )


def forgotten(w: Weights, x: Array) -> Array:
    f = sigmoid(convolved(w, "f_conv1d", linear(w, "f_proj", x)))
    if "lower_bounds" not in w:
        return f
    shares = np.exp(w["lower_bounds"]) / np.exp(w["lower_bounds"]).sum(0)
    bound = shares[1]  # of the second layer: all that is behind the first
    return np.asarray(bound + (1 - bound) * f)


def hgrn(w: Weights, x: Array, c: Config) -> Array:
    f = forgotten(w, x)
    i = silu(convolved(w, "i_conv1d", linear(w, "i_proj", x))) * (1 - f)
    state, rows = np.zeros(i.shape[1]), []
    for t in range(len(x)):
        state = f[t] * state + i[t]
        rows.append(state)
    y = rms(np.stack(rows), w["g_norm.weight"], c.norm_eps)
    return linear(w, "o_proj", y * silu(linear(w, "g_proj", x)))


def hgrn2(w: Weights, x: Array, _: Config) -> Array:
    q = silu(convolved(w, "q_conv1d", linear(w, "q_proj", x)))
    f, v = forgotten(w, x), convolved(w, "i_conv1d", linear(w, "i_proj", x))
    y = carried(heads(q, 2), heads(1 - f, 2), heads(v, 2), heads(f, 2))
    return linear(w, "o_proj", rms(y.reshape(len(x), -1), w["g_norm.weight"], 1e-5))


CASES: list[tuple[str, Callable[[Weights, Array, Config], Array], dict[str, Any]]] = [
    ("retnet", retnet, {}),
    ("retnet", retnet, {"num_kv_heads": 1, "output_gate": False}),
    ("gla", gla, {}),
    ("gla", gla, {"num_kv_heads": 1, "conv_size": None, "gate_floor": -0.03}),
    ("deltanet", deltanet, {"output_gate": False}),
    ("deltanet", deltanet, {"conv_size": None, "reflecting": True}),
    ("gated-deltanet", gated_deltanet, {}),
    ("gated-deltanet", gated_deltanet, {"num_value_heads": 4, "reflecting": True}),
    ("hgrn", hgrn, {}),
    ("hgrn", hgrn, {"conv_size": None, "lower_bounds": False}),
    ("hgrn2", hgrn2, {}),
    ("hgrn2", hgrn2, {"conv_size": None, "lower_bounds": False}),
]


@pytest.mark.parametrize(("name", "recurrence", "changes"), CASES)
def test_a_mixer_is_the_recurrence_of_its_paper(
    name: str, recurrence: Callable[[Weights, Array, Config], Array], changes: dict[str, Any]
) -> None:
    """As the second layer of two, so that forget gates have a lower bound."""
    config = replace(SMALL, layers=("attention", name), norm_eps=1e-4, **changes)
    mixer = shaken(build(config)).layers[1].mixer.double()  # type: ignore[union-attr, index]
    x = np.random.default_rng(2).normal(size=(9, 16))

    expected = recurrence(weights_of(mixer), x, config)

    with torch.no_grad():
        found = mixer(torch.from_numpy(x)[None])[0].numpy()
    # positions are turned by angles in float32, as everywhere
    limit = 1e-6 if name == "retnet" else 1e-9
    np.testing.assert_allclose(found, expected, rtol=limit, atol=limit)


@pytest.mark.parametrize("size", [1e-12, 1e-5, 0.5])
@pytest.mark.parametrize("logit", [-200.0, -20.0, 0.0, 20.0])
def test_forget_gates_are_finite_above_any_bound(size: float, logit: float) -> None:
    bounds = torch.tensor([[0.0], [float(np.log(size))]])
    log, written = forget_gate(torch.full((1, 1, 1), logit), bounds, 1)
    bound = size / (1 + size)
    expected = bound + (1 - bound) / (1 + np.exp(-logit))
    assert torch.isfinite(log).all()
    np.testing.assert_allclose(log.exp().item(), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(written.item(), 1 - expected, rtol=1e-5, atol=1e-7)


def official(config: Config, model_type: str, path: Path) -> Path:
    """A directory as the library would save it, of a small model of one mixer and attention."""
    layers = [i for i, name in enumerate(config.layers) if name in ("attention", "window")]
    values = {
        "model_type": model_type,
        "hidden_size": 16,
        "num_hidden_layers": len(config.layers),
        "num_heads": 2,
        "expand_k": None if model_type == "gated_deltanet" else 1.0,
        "expand_v": 1.0,
        "use_short_conv": True,
        "conv_size": 3,
        "intermediate_size": 24,
        "vocab_size": 16,
        "norm_eps": 1e-6,
        "attn": {"layers": layers, "num_heads": 2, "num_kv_heads": 1, "window_size": None},
    }
    path.mkdir()
    (path / "config.json").write_text(json.dumps(values))
    names = LAYOUT.configure(values, {})
    module = shaken(build(MODEL.configure(names)))
    state = module.state_dict()
    theirs = {
        fla_checkpoints.official_name(name, ()): value.clone() for name, value in state.items()
    }
    save_file(theirs, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The small model of all mixers, verified."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("hybrid")
    save(folder / "model.pt", MODEL.name, SMALL, shaken(build(SMALL)))
    return export(folder / "model.pt", folder / "bundle", steps=24)


def test_all_mixers_in_one_model_are_exported_and_verified(exported: ExportReport) -> None:
    """Each layer has the states of its kind; those of attention to all tokens alone grow."""
    assert exported.parity is not None
    assert exported.parity.passed
    states = exported.manifest.main.states
    grown = {s.input for s in states if any(isinstance(d, str) for d in s.shape[1:])}
    assert grown == {"past_key_values.6.key", "past_key_values.6.value"}
    recurrent = {s.input.split(".")[1]: s.shape[1:] for s in states if ".recurrent" in s.input}
    assert recurrent["3"] == (16, 1)
    assert {recurrent[layer] for layer in "01245"} == {(2, 8, 8)}


def test_parts_and_unequal_rows_give_what_whole_rows_give(exported: ExportReport) -> None:
    whole = Session.load(exported.out)
    expected = whole.step({"input_ids": TOKENS})["logits"]
    parted = Session.load(exported.out)
    pieces = [parted.step({"input_ids": TOKENS[:, a:b]})["logits"] for a, b in ((0, 1), (1, 24))]
    unequal = parted.step({"input_ids": TOKENS[:, 24:30]}, lengths=[6, 1, 3])["logits"]
    rest = [TOKENS[row, at : at + 5] for row, at in enumerate((30, 25, 27))]
    after = parted.step({"input_ids": np.stack(rest)})["logits"]

    np.testing.assert_allclose(np.concatenate(pieces, 1), expected[:, :24], atol=2e-5)
    np.testing.assert_allclose(unequal[2, :3], expected[2, 24:27], atol=2e-5)
    for row, at in enumerate((30, 25, 27)):
        np.testing.assert_allclose(after[row], expected[row, at : at + 5], atol=2e-5)


@pytest.mark.parametrize("kind", list(KEYS["models"]))
def test_official_names_and_shapes_at_full_size_fit(kind: str) -> None:
    """Every tensor of the library's model of 24 layers, a quarter of them attention, is placed."""
    values, shapes = KEYS["models"][kind]["config"], KEYS["models"][kind]["keys"]
    assert LAYOUT.fits(values, shapes)
    config = MODEL.configure(LAYOUT.configure(values, shapes))
    with torch.device("meta"):
        module = build(config)
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    found = LAYOUT.weights(tensors, config)
    assert {n: tuple(t.shape) for n, t in found.items()} == {
        n: tuple(t.shape) for n, t in module.state_dict().items()
    }
    assert {id(t) for t in found.values()} == {id(t) for t in tensors.values()}
    assert config.layers.count("attention") == 6


def test_a_directory_of_the_library_becomes_an_engine(tmp_path: Path) -> None:
    path = official(replace(SMALL, layers=("gla", "attention")), "gla", tmp_path / "gla")

    report = export(path, tmp_path / "bundle", steps=12)

    assert report.parity is not None
    assert report.parity.passed
    assert report.manifest.source["model"] == "hybrid-linear-attention"


@pytest.mark.parametrize("kind", ["gla", "gated_deltanet"])
def test_a_directory_of_an_older_version_is_the_same_model(kind: str, tmp_path: Path) -> None:
    """Gates and what they gate are one matrix; some values and weights nobody reads."""
    layers = (kind.replace("_", "-"), "attention")
    path = official(replace(SMALL, layers=layers), kind, tmp_path / kind)
    wanted = load_source(path).body
    values = json.loads((path / "config.json").read_text())
    older = {"rms_norm_eps": 1e-6, "share_conv_kernel": True, "norm_first": False}
    (path / "config.json").write_text(json.dumps({**values, **older}))
    tensors = load_file(path / "model.safetensors")
    for layer in range(2):
        gate, up = (f"model.layers.{layer}.mlp.{name}_proj.weight" for name in ("gate", "up"))
        tensors[gate] = torch.cat((tensors[gate], tensors.pop(up)))
    if kind == "gated_deltanet":
        tensors["model.layers.0.attn.D"] = torch.ones(2)
    save_file(tensors, path / "model.safetensors")

    found = load_source(path).body

    assert isinstance(found, nn.Module)
    assert isinstance(wanted, nn.Module)
    torch.testing.assert_close(found.state_dict(), wanted.state_dict(), rtol=0, atol=0)
    tensors[gate] = tensors[gate][1:]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(SourceError, match=r"lacks 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load_source(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_map": "relu"}, "feature_map = 'relu', of which only None is supported"),
        ({"hidden_act": "powlu"}, "hidden_act = 'powlu'"),
        ({"num_heads": "2"}, "num_heads = '2'; it should be an integer"),
        ({"num_heads": 3}, "expand_k = 1.0: 16 entries cannot be cut into 3 heads"),
        ({"attn": {"layers": [5], "num_heads": 2}}, r"attn.layers = \[5\]: 5 is no layer below 2"),
        ({"attn": [3]}, "attn = .*without a list of layers"),
        ({"attn": {"layers": [1]}}, r"lacks 'attn\.num_heads'"),
        ({"attn": {"layers": [1], "num_heads": 16}}, "attention_heads 16 has to divide half"),
        ({"num_hidden_layers": None}, "num_hidden_layers = None"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers = 1000000000000, above 10000"),
        ({"num_hidden_layers": 3}, r"lacks 'model\.layers\.2\.attn_norm\.weight'"),
        ({"use_short_conv": False}, r"Unexpected in the file .*\n.*k_conv1d"),
        ({"expand_v": 2.0}, r"model\.layers\.0\.attn\.v_proj\.weight: \[16, 16\] in the file"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rms_norm_eps": 1e-5}, r"rms_norm_eps = 1e-05, of which only 1e-06 is supported"),
        ({"logit_scale": 0.5}, r"logit_scale = 0\.5, which is not known"),
        ({"attn": {"layers": [1], "num_heads": 2, "qk_norm": True}}, r"attn\.qk_norm = True"),
    ],
)
def test_what_a_directory_says_wrong_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = official(replace(SMALL, layers=("gla", "attention")), "gla", tmp_path / "gla")
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**values, **changes}))

    with pytest.raises(SourceError, match=message):
        load_source(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ("mamba",)}, "layers has 'mamba', which is none of retnet"),
        ({"layers": ()}, "layers is empty"),
        ({"layers": ("hgrn", "hgrn2"), "key_size": 4}, "key_size has to be value_size"),
        ({"layers": ("retnet",), "key_size": 7}, "key_size 7 has to be even"),
        ({"layers": ("gla",), "num_kv_heads": 4}, "num_kv_heads is larger"),
        ({"layers": ("gated-deltanet",), "num_value_heads": 3}, "3 heads cannot share 2"),
        ({"layers": ("gated-deltanet",), "num_value_heads": 1}, "num_value_heads is smaller"),
    ],
)
def test_configs_that_make_no_model_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(replace(SMALL, **changes))


def test_every_mixer_is_among_the_small_ones() -> None:
    assert {*SMALL.layers, "window"} == set(MIXERS)


def test_the_trained_checkpoint_is_of_four_kinds_of_layers() -> None:
    path = Path(__file__).parents[2] / "models" / "checkpoints" / "hybrid_linear_attention.pt"
    saved = torch.load(path, weights_only=True)
    config = MODEL.configure(saved["config"])

    assert len(set(config.layers)) == 4
    build(config).load_state_dict(saved["state_dict"])
