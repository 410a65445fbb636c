"""SeqBoat: the mask over all tokens is a queue of active ones; its engine follows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import intaglio
from intaglio.errors import SourceError
from intaglio.models.seqboat import SEQBOAT, Config, SelectiveCopy, SeqBoat, SeqBoatLayer, build
from intaglio.runtime import Session

KEYS = Path(__file__).parents[1] / "data" / "keys" / "seqboat.json"
SMALL = Config(
    input_size=4,
    output_size=3,
    hidden_size=6,
    key_size=4,
    value_size=5,
    averages=3,
    window=2,
    num_layers=1,
    max_positions=40,
)


def _drawn(config: Config) -> SeqBoat:
    """A model whose router activates some tokens."""
    torch.manual_seed(0)
    module = build(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def _turned(x: Tensor, position: int) -> Tensor:
    """Neighbours as complex numbers, turned by their position."""
    pairs = torch.complex(x[0::2], x[1::2])
    rate = 10_000.0 ** (-torch.arange(len(pairs), dtype=torch.float64) / len(pairs))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(rate), position * rate)).flatten()


def _stepped(layer: SeqBoatLayer, x: Tensor) -> Tensor:
    """The layer token by token, over a queue of the last w + 1 active tokens."""
    config = layer.config
    p = torch.sigmoid(layer.ssm.delta)[..., 0]
    q = 1 - p * torch.sigmoid(layer.ssm.alpha)[..., 0]
    state, rows = torch.zeros_like(q), []
    queue: list[tuple[int, Tensor, Tensor]] = []
    for t, token in enumerate(x):
        normed = layer.norm(token) if config.prenorm else token
        state = q * state + p * layer.ssm.beta[..., 0] * normed[:, None]
        average = (layer.ssm.gamma * state).sum(1) / config.averages**0.5
        m = F.silu(average + layer.ssm.omega * normed)
        u, hx = layer.hx_proj(m)[:2], layer.hx_proj(m)[2:]
        out = hx + token
        if u[1] > u[0]:
            mixed = F.silu(layer.mx_proj(m))
            z, r, v = mixed[:4], mixed[4:9], mixed[9:]
            query, key = (z * layer.gamma[i] + layer.beta[i] for i in (0, 1))
            queue = [*queue, (t, key, v)][-config.window - 1 :]
            scores = torch.stack([_score(layer, query, t, key, at) for at, key, _ in queue])
            scores = scores.softmax(0) if config.attention == "softmax" else scores.relu() ** 2
            found = scores @ torch.stack([v for _, _, v in queue])
            a = (u / layer.q_router.temp.exp()).softmax(0)[1]
            out = out + a * layer.h_proj(r * found)
        out = F.silu(out)
        rows.append(out if config.prenorm else layer.norm(out))
    return torch.stack(rows)


def _score(layer: SeqBoatLayer, query: Tensor, t: int, key: Tensor, at: int) -> Tensor:
    config = layer.config
    soft = config.attention == "softmax"
    scaled = query * config.key_size**-0.5 if soft else query / config.window
    if config.positions == "rotary":
        return _turned(scaled, t) @ _turned(key, at)
    return scaled @ key + layer.rel_pos_bias.rel_pos_bias[config.max_positions - 1 + at - t]


@pytest.mark.parametrize(
    ("attention", "positions", "prenorm"),
    [("softmax", "rotary", True), ("relu2", "simple", False), ("softmax", "simple", False)],
)
def test_the_layer_is_a_queue_of_active_tokens(
    attention: str, positions: str, *, prenorm: bool
) -> None:
    """The equations of the paper, one token after the other, in float64."""
    config = replace(SMALL, attention=attention, positions=positions, prenorm=prenorm)
    layer = _drawn(config).double().get_submodule("seq_layers.0")
    assert isinstance(layer, SeqBoatLayer)
    x = torch.randn(1, 24, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0], _stepped(layer, x[0]), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seqboat") / "out"
    inputs = SEQBOAT.inputs(SMALL, 3, 12, torch.Generator().manual_seed(0))
    intaglio.export(_drawn(SMALL), out, inputs=inputs, steps=40)
    return out


def test_its_engine_gives_the_same_in_parts(bundle: Path) -> None:
    signal = SEQBOAT.inputs(SMALL, 2, 20, torch.Generator().manual_seed(1))["signal"].numpy()
    whole, parted = Session.load(bundle), Session.load(bundle)
    wanted = next(iter(whole.step({"signal": signal}).values()))
    parts = [parted.step({"signal": part}) for part in np.split(signal, [1, 2, 15], axis=1)]
    got = np.concatenate([next(iter(part.values())) for part in parts], 1)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_official_checkpoints_of_full_size_are_read() -> None:
    listed = json.loads(KEYS.read_text())
    shapes = {name: tuple(shape) for name, shape in listed["keys"].items()}
    (layout,) = SEQBOAT.layouts
    assert layout.fits(listed["config"], shapes)
    config = SEQBOAT.configure(layout.configure(listed["config"], shapes))
    assert (config.hidden_size, config.window, config.max_positions) == (512, 128, 4096)
    with torch.device("meta"):
        module = build(config)
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    module.load_state_dict(layout.weights(tensors, config), assign=True)


def test_what_does_not_fit_is_refused_by_name() -> None:
    listed = json.loads(KEYS.read_text())
    shapes = {name: tuple(shape) for name, shape in listed["keys"].items()}
    (layout,) = SEQBOAT.layouts
    with pytest.raises(SourceError, match="nothing tells bidirectional, norm_type, mem_size"):
        layout.configure({}, shapes)
    for name, value in (("bidirectional", True), ("norm_type", "batchnorm"), ("local_pos", True)):
        with pytest.raises(SourceError, match=f"{name} = {value!r}"):
            layout.configure({**listed["config"], name: value}, shapes)
    with pytest.raises(SourceError, match="attention is 'laplace'"):
        build(replace(SMALL, attention="laplace"))
    with pytest.raises(SourceError, match="positions is 'alibi'"):
        build(replace(SMALL, positions="alibi"))


def test_the_task_asks_for_marked_symbols_in_order() -> None:
    task = SelectiveCopy(time=12, marked=3)
    signal, wanted = task.draw(8, 5, torch.Generator().manual_seed(0))
    symbols = signal.argmax(-1)
    assert (symbols[:, -3:] == 7).all()
    for row, told in zip(symbols[:, :-3], wanted, strict=True):
        assert row[row > 0].tolist() == told.tolist()


def test_the_trained_checkpoint_copies_marked_symbols() -> None:
    """All but a few of them, which chance would give one time in eight; few tokens are left out."""
    path = Path(__file__).parents[2] / "models" / "checkpoints" / "seqboat.pt"
    saved = torch.load(path, weights_only=True)
    module = build(SEQBOAT.configure(saved["config"]))
    module.load_state_dict(saved["state_dict"])
    shares: list[Tensor] = []
    for layer in module.seq_layers:
        layer.get_submodule("q_router").register_forward_hook(
            lambda _module, _inputs, routed: shares.append(routed[0].float().mean())
        )
    signal, wanted = SelectiveCopy().draw(10, 64, torch.Generator().manual_seed(5))
    with torch.no_grad():
        told = module(signal)[:, -2:].argmax(-1)
    assert (told == wanted).float().mean() >= 0.95
    assert torch.stack(shares).mean() > 0.9


def test_what_it_carries_is_a_queue_of_active_tokens(bundle: Path) -> None:
    specs = [spec for spec in Session.load(bundle).manifest.main.states if spec.op == "queue"]
    assert {spec.shape[spec.axis or 0] for spec in specs} == {SMALL.window + 1}
    assert not any(spec.grows for spec in Session.load(bundle).manifest.main.states)
