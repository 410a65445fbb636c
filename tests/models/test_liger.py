"""Liger: its layer is the equations of the paper, and its engine what the module computes."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

import intaglio
from intaglio.errors import SourceError
from intaglio.exporter.sources.load import load_source
from intaglio.models import save, training
from intaglio.models.liger import (
    GATINGS,
    LIGER,
    LINEARIZATION,
    TUNED,
    Config,
    LigerAttention,
    Linearization,
    adopt,
)
from intaglio.models.parts.pretrained_llama import llama_names, llama_values, read
from intaglio.models.training import TrainingRecipe
from intaglio.runtime import Session

Array = npt.NDArray[np.float64]
KEYS = json.loads((Path(__file__).parents[1] / "data" / "keys" / "liger.json").read_text())
SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "window": 5,
    "slots": 4,
}


@pytest.mark.parametrize("gating", GATINGS)
def test_the_layer_equals_the_recurrence_of_the_paper(gating: str) -> None:
    """Token by token, every query head with a state of its own, beside softmax over a window."""
    torch.manual_seed(0)
    config = Config(**{**SMALL, "gating": gating})
    layer = LigerAttention(config).double()
    x = torch.randn(1, 9, 32, dtype=torch.float64)
    given = {name: p.detach().numpy() for name, p in layer.named_parameters()}
    expected = _liger(x[0].numpy(), given, config)
    with torch.no_grad():
        np.testing.assert_allclose(layer(x)[0].numpy(), expected, atol=1e-6, rtol=1e-6)


def _liger(x: Array, weights: dict[str, Array], config: Config) -> Array:
    heads, groups, size = config.num_heads, config.num_kv_heads, config.head_size
    q, k, v = (x @ weights[f"{name}_proj.weight"].T for name in "qkv")
    rows = []
    for head in range(heads):
        group = head // (heads // groups)
        own = slice(group * size, (group + 1) * size)
        qh, kh, vh = q[:, head * size : (head + 1) * size], k[:, own], v[:, own]
        recurrent = {"gla": _gla, "hgrn2": _hgrn2, "gsa": _gsa}[config.gating](qh, kh, vh, config)
        rows.append((recurrent + _window(qh, kh, vh, config)) / 2)
    out: Array = np.concatenate(rows, -1) @ weights["o_proj.weight"].T
    return out


def _gla(q: Array, k: Array, v: Array, _: Config) -> Array:
    return _gated(_softmax(q), _softmax(k), v, _sigmoid(k) ** (1 / 16))


def _hgrn2(q: Array, k: Array, v: Array, _: Config) -> Array:
    return _gated(_softmax(q), 1 - _sigmoid(k), v, _sigmoid(k))


def _gsa(q: Array, k: Array, v: Array, config: Config) -> Array:
    pooled = k.reshape(len(k), config.slots, -1).mean(-1)
    kept = _sigmoid(pooled) ** (1 / 16)
    keys, values = np.zeros((k.shape[1], config.slots)), np.zeros((config.slots, v.shape[1]))
    rows = []
    for t in range(len(q)):
        keys = keys * kept[t] + np.outer(k[t], 1 - kept[t])
        values = kept[t][:, None] * values + np.outer(1 - kept[t], v[t])
        rows.append(values.T @ _softmax(keys.T @ q[t]))
    return np.stack(rows)


def _gated(q: Array, k: Array, v: Array, kept: Array) -> Array:
    state, rows = np.zeros((k.shape[1], v.shape[1])), []
    for t in range(len(q)):
        state = kept[t][:, None] * state + np.outer(k[t], v[t])
        rows.append(state.T @ q[t])
    return np.stack(rows)


def _window(q: Array, k: Array, v: Array, config: Config) -> Array:
    size = config.head_size
    rates = config.rope_theta ** (-np.arange(0, size, 2) / size)

    def turn(row: Array, position: int) -> Array:
        pairs = (row[: size // 2] + 1j * row[size // 2 :]) * np.exp(1j * position * rates)
        return np.concatenate((pairs.real, pairs.imag))

    rows = []
    assert config.window is not None
    for t in range(len(q)):
        seen = range(max(0, t - config.window + 1), t + 1)
        scores = np.array([turn(q[t], t) @ turn(k[s], s) for s in seen]) / size**0.5
        rows.append(_softmax(scores) @ v[list(seen)])
    return np.stack(rows)


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    out: Array = powers / powers.sum(-1, keepdims=True)
    return out


def _sigmoid(x: Array) -> Array:
    out: Array = 1 / (1 + np.exp(-x))
    return out


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """The small model, exported with the gatings of one recurrence and of two."""
    folder = tmp_path_factory.mktemp("liger")
    made = {}
    for gating in ("gla", "gsa"):
        torch.manual_seed(1)
        config = LIGER.configure({**SMALL, "gating": gating})
        module = LIGER.build(config).eval()
        for parameter in module.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.3)
        save(folder / f"{gating}.pt", "liger", config, module)
        intaglio.export(folder / f"{gating}.pt", folder / gating, steps=24)
        made[gating] = module, folder / gating
    return made


@pytest.mark.parametrize("gating", ["gla", "gsa"])
def test_steps_of_any_length_give_what_the_module_gives(
    bundles: dict[str, tuple[Any, Path]], gating: str
) -> None:
    """Three rows of unequal length, in one call, in parts, and token by token."""
    module, path = bundles[gating]
    ids = np.random.default_rng(0).integers(0, 40, (3, 17))
    with torch.no_grad():
        expected = module(torch.from_numpy(ids)).numpy()
    for parts in ([17], [1, 6, 10], [1] * 17):
        session = Session.load(path)
        starts = np.cumsum([0, *parts])
        got = [
            session.step({"input_ids": ids[:, a:b]})["logits"] for a, b in pairwise(starts.tolist())
        ]
        np.testing.assert_allclose(np.concatenate(got, 1), expected, atol=2e-4, rtol=1e-4)
    session = Session.load(path)
    lengths = np.array([17, 4, 11])
    uneven = session.step({"input_ids": ids}, lengths=lengths)["logits"]
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(
            uneven[row, :length], expected[row, :length], atol=2e-4, rtol=1e-4
        )


def test_heads_that_share_keys_share_a_state(bundles: dict[str, tuple[Any, Path]]) -> None:
    """One state for each of the two key-value heads, not one for each of the four of queries."""
    states = Session.load(bundles["gla"][1]).manifest.main.states
    kept = [state.shape for state in states if state.op == "linear_attention"]
    assert kept == [("batch", 2, 8, 8)] * 2
    windows = {state.shape[2] for state in states if state.op == "attention"}
    assert windows == {4}


def test_parameters_are_those_of_the_transformer() -> None:
    """A Llama's weights load as they are: nothing is added and nothing left out."""
    llama = intaglio.models.find("llama")
    theirs = llama.build(llama.configure({"hidden_size": 32, "num_layers": 1})).state_dict()
    ours = LIGER.build(LIGER.configure({"hidden_size": 32, "num_layers": 1})).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_a_gating_that_is_none_is_refused() -> None:
    with pytest.raises(SourceError, match="gating = 'gru'; it should be one of gla, hgrn2, gsa"):
        LIGER.build(LIGER.configure({"gating": "gru"}))


def test_the_published_keys_are_read() -> None:
    """Every key of the code at the size of Llama-3-8B becomes a parameter of its shape."""
    config = LIGER.configure(LINEARIZATION.configure(KEYS["config"], {}))
    with torch.device("meta"):
        module = LIGER.build(config)
        theirs = {name: torch.empty(shape) for name, shape in KEYS["keys"].items()}
    found = LINEARIZATION.weights(theirs, config)
    assert {id(x) for x in found.values()} == {id(x) for x in theirs.values()}
    assert {n: x.shape for n, x in found.items()} == {
        n: x.shape for n, x in module.state_dict().items()
    }
    assert (config.gating, config.slots, config.window) == ("gla", 128, 65)


def test_what_the_layout_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    values = {**KEYS["config"], "rope_scaling": {"rope_type": "llama3"}}
    with pytest.raises(SourceError, match="rope_scaling"):
        LINEARIZATION.configure(values, {})
    with pytest.raises(SourceError, match="heads of 64"):
        LINEARIZATION.configure({**KEYS["config"], "head_dim": 64}, {})
    small = _directory(tmp_path, "liger_hgrn2")
    source = load_source(small)
    assert isinstance(source.body, torch.nn.Module)
    mixer = source.body.get_submodule("layers.0.mixer")
    assert isinstance(mixer, LigerAttention)
    assert (source.model, mixer.config.gating) == ("liger", "hgrn2")
    tensors = load_file(small / "model.safetensors")
    del tensors["model.layers.0.self_attn.k_proj.weight"]
    save_file(tensors, small / "model.safetensors")
    with pytest.raises(SourceError, match=r"model\.layers\.0\.self_attn\.k_proj\.weight"):
        load_source(small)


def _directory(folder: Path, kind: str, vocab_size: int = 256) -> Path:
    """A directory of Hugging Face's library of the Llama type, with random weights."""
    values = {
        "model_type": kind,
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0,
    }
    (folder / "config.json").write_text(json.dumps(values))
    names = llama_names(1, tied=False)
    module = LIGER.build(LIGER.configure(llama_values(values)))
    tensors = {names[name]: x.clone() for name, x in module.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


TWO_STEPS = Linearization(
    tuning=TrainingRecipe(steps=2, batch=2, time=16, rate=1e-2, weight_decay=0.0), rank=2
)


def test_the_recipe_adopts_a_directory_of_hugging_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sizes and weights; q, k and v alone are tuned, and updates are merged."""
    monkeypatch.setattr(training, "HELD_OUT", ("colorsys",))
    start = _directory(tmp_path, "llama")
    config = adopt(Config(gating="hgrn2", window=9), start)
    assert (config.hidden_size, config.rope_theta, config.window) == (32, 5000.0, 9)
    module = LIGER.build(config)
    before = read(start).tensors
    assert "numbers were tuned" in TWO_STEPS.train(module, None, start)
    after = module.state_dict()
    assert after.keys() == before.keys()
    changed = {
        name.rpartition("mixer.")[2] for name in after if (after[name] != before[name]).any()
    }
    assert changed == {"q_proj.weight", "k_proj.weight", "v_proj.weight"}
    update = after["layers.0.mixer.q_proj.weight"] - before["layers.0.mixer.q_proj.weight"]
    assert torch.linalg.matrix_rank(update, atol=1e-5) == 2


def test_the_trained_checkpoint_is_its_transformer_but_for_updates_of_low_rank() -> None:
    """What the recipe makes of `llama_small.pt`, whose own loss is recorded, as this one's is."""
    folder = Path(__file__).parents[2] / "models" / "checkpoints"
    before = read(folder / "llama_small.pt").tensors
    saved = torch.load(folder / "liger.pt", weights_only=True)
    assert LIGER.configure(saved["config"]) == LIGER.presets["small"]
    for name, after in saved["state_dict"].items():
        change = after - before[name]
        rank = torch.linalg.matrix_rank(change.reshape(len(change), -1), atol=1e-5)
        assert rank == (8 if any(part in name for part in TUNED) else 0), name


def test_the_recipe_says_what_it_begins_from(tmp_path: Path) -> None:
    module = LIGER.build(Config())
    with pytest.raises(SourceError, match=r"--from models/checkpoints/llama\.pt"):
        TWO_STEPS.train(module, None, None)
    save(tmp_path / "own.pt", "liger", Config(), module)
    with pytest.raises(SourceError, match="checkpoint of 'liger'; this recipe begins from one"):
        adopt(Config(), tmp_path / "own.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(SourceError, match="no checkpoint"):
        adopt(Config(), tmp_path / "text.pt")
    with pytest.raises(SourceError, match="cannot be read"):
        adopt(Config(), tmp_path)
    (tmp_path / "words").mkdir()
    with pytest.raises(SourceError, match=r"no tokenizer\.json, and 300 tokens are not bytes"):
        read(_directory(tmp_path / "words", "llama", 300))
    with pytest.raises(SourceError, match="type 'mistral'"):
        read(_directory(tmp_path / "words", "mistral"))
