"""Liger: its layer is the equations of the paper, and its engine what the module computes."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import intaglio
from intaglio.errors import SourceError
from intaglio.models import save
from intaglio.models.liger import GATINGS, LIGER, Config, LigerAttention
from intaglio.runtime import Session

Array = npt.NDArray[np.float64]
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
