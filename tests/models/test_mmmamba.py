"""mmMamba: its mixer is the equations of the paper, pictures stand where their tokens do."""

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
from intaglio.models.mmmamba import MMMAMBA, Config, Mamba2Attention
from intaglio.runtime import Session

Array = npt.NDArray[np.float64]
SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "image_token": 39,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "attention_layers": "0",
}


def test_the_mixer_equals_the_recurrence_of_the_paper() -> None:
    """Token by token: S_t = e^{-d A} S_{t-1} + d k v^T, y = norm(S^T q) silu(g), a head each."""
    torch.manual_seed(0)
    config = Config(**SMALL)
    layer = Mamba2Attention(config).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1, 7, 32, dtype=torch.float64)
    weights = {name: p.detach().numpy() for name, p in layer.named_parameters()}
    with torch.no_grad():
        np.testing.assert_allclose(
            layer(x)[0].numpy(), _mixer(x[0].numpy(), weights, config), rtol=1e-9, atol=1e-9
        )


def _mixer(x: Array, weights: dict[str, Array], config: Config) -> Array:
    heads, groups, size = config.num_heads, config.num_kv_heads, config.head_size
    v, k, q, g, dt = (x @ weights[f"{name}_proj.weight"].T for name in ("v", "k", "q", "g", "dt"))
    entering = np.concatenate((v, k, q), -1)
    before = np.concatenate((np.zeros_like(entering[:1]), entering[:-1]))
    kernel = weights["conv1d.weight"][:, 0]
    mixed = _silu(before * kernel[:, 0] + entering * kernel[:, 1] + weights["conv1d.bias"])
    v, k, q = np.split(mixed, (groups * size, 2 * groups * size), -1)
    step = np.log1p(np.exp(dt + weights["dt_bias"]))
    rows = np.zeros((len(x), heads, size))
    for head in range(heads):
        own = head // (heads // groups)
        state = np.zeros((size, size))
        for t in range(len(x)):
            kt, vt = (y[t, own * size : (own + 1) * size] for y in (k, v))
            state = np.exp(-step[t, head] * np.exp(weights["A_log"][head])) * state
            state = state + step[t, head] * np.outer(kt, vt)
            y = state.T @ q[t, head * size : (head + 1) * size]
            y = y / np.sqrt((y**2).mean() + config.gate_norm_eps) * weights["g_norm.weight"]
            rows[t, head] = y * _silu(g[t, head * size : (head + 1) * size])
    out: Array = rows.reshape(len(x), -1) @ weights["o_proj.weight"].T
    return out


def _silu(x: Array) -> Array:
    out: Array = x / (1 + np.exp(-x))
    return out


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small hybrid: one layer of attention, one mixer."""
    folder = tmp_path_factory.mktemp("mmmamba")
    torch.manual_seed(1)
    config = MMMAMBA.configure(SMALL)
    module = MMMAMBA.build(config).eval()
    for parameter in module.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    save(folder / "model.pt", "mmmamba", config, module)
    intaglio.export(folder / "model.pt", folder / "bundle", steps=24)
    return module, folder / "bundle"


def test_pictures_are_given_once_and_steps_of_any_length_give_what_the_module_gives(
    exported: tuple[Any, Path],
) -> None:
    """Two pictures a row, their tokens among text, in one call, in parts, and one by one."""
    module, path = exported
    random = np.random.default_rng(0)
    ids = random.integers(0, 39, (3, 17))
    ids[0, :8], ids[1, 3:7], ids[2, 9:] = 39, 39, 39
    pixels = random.random((3, 2, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(ids), torch.from_numpy(pixels)).numpy()
    for parts in ([17], [1, 5, 11], [1] * 17):
        session = Session.load(path)
        session.condition({"pixel_values": pixels})
        starts = np.cumsum([0, *parts])
        got = [
            session.step({"input_ids": ids[:, a:b]})["logits"] for a, b in pairwise(starts.tolist())
        ]
        np.testing.assert_allclose(np.concatenate(got, 1), expected, atol=2e-4, rtol=1e-4)
    session = Session.load(path)
    session.condition({"pixel_values": pixels})
    lengths = np.array([17, 4, 11])
    uneven = session.step({"input_ids": ids}, lengths=lengths)["logits"]
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(
            uneven[row, :length], expected[row, :length], atol=2e-4, rtol=1e-4
        )


def test_mimic_initialisation_lets_the_inherited_projections_through() -> None:
    """A fresh mixer convolves with (0, 1), and its steps do not depend on the token."""
    mixer = Mamba2Attention(Config(**SMALL))
    steps = torch.nn.functional.softplus(mixer.dt_bias)
    assert mixer.conv1d.weight[:, 0].tolist() == [[0.0, 1.0]] * 64
    assert not mixer.dt_proj.weight.any()
    assert 1e-3 <= steps.min() <= steps.max() <= 1e-1 + 1e-6


@pytest.mark.parametrize("layers", ["2", "0,x", "-1"])
def test_layers_that_there_are_not_are_refused(layers: str) -> None:
    with pytest.raises(SourceError, match="numbers of layers from 0 to 1"):
        MMMAMBA.build(MMMAMBA.configure({**SMALL, "attention_layers": layers}))
