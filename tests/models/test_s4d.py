"""S4D: its convolution is the recurrence of the paper, which is what its engine runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import intaglio
from intaglio.models import find
from intaglio.models.parts import hippo
from intaglio.models.parts.s4_layers import Delays, Stack
from intaglio.models.s4d import S4D, TINY, Config, Layer
from intaglio.runtime import Session

KEYS = Path(__file__).parents[1] / "data" / "keys" / "s4d.json"
SMALL = Config(input_size=2, output_size=3, hidden_size=4, num_layers=2, state_size=8)


def test_the_convolution_equals_the_recurrence_of_the_paper() -> None:
    """x_t = e^{dt A} x_{t-1} + (e^{dt A} - 1) / A u_t, y_t = 2 Re(C x_t) + D u_t, in float64."""
    torch.manual_seed(0)
    layer = Layer(SMALL).double()
    u = torch.randn(1, 30, 4, dtype=torch.float64)
    kernel = layer.kernel
    weights = (kernel.log_A_real, kernel.A_imag, kernel.log_dt, kernel.C, layer.D)
    real, imaginary, log_dt, pairs, D = (w.detach().numpy() for w in weights)
    A, dt, C = -np.exp(real) + 1j * imaginary, np.exp(log_dt)[:, None], pairs @ [1, 1j]
    state, rows = np.zeros((4, 4), complex), []
    for token in u[0].numpy():
        state = np.exp(dt * A) * state + (np.exp(dt * A) - 1) / A * token[:, None]
        rows.append(2 * (C * state).sum(1).real + D * token)
    y = torch.nn.functional.gelu(torch.tensor(np.array(rows)))
    torch.testing.assert_close(layer(u)[0], layer.output_linear(y.mT[None])[0].mT)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("s4d") / "out"
    inputs = S4D.inputs(SMALL, 3, 12, torch.Generator().manual_seed(0))
    intaglio.export(S4D.build(SMALL), out, inputs=inputs, steps=64)
    return out


def test_its_engine_carries_the_states_of_the_paper(bundle: Path) -> None:
    """N numbers a channel, however many tokens; and the mean so far, as a sum."""
    states = Session.load(bundle).entry.states
    assert [s.shape for s in states if "recurrent" in s.input][:2] == [("batch", 4, 8)] * 2
    assert not [s for s in states if "capacity" in s.shape or "past" in s.shape]


def test_parts_of_any_length_give_the_same(bundle: Path) -> None:
    signal = np.random.default_rng(0).standard_normal((2, 20, 2)).astype(np.float32)
    whole, parted = Session.load(bundle), Session.load(bundle)
    wanted = next(iter(whole.step({"signal": signal}).values()))
    parts = [parted.step({"signal": p}) for p in np.split(signal, [1, 2, 15], axis=1)]
    got = np.concatenate([next(iter(part.values())) for part in parts], 1)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_official_checkpoints_of_full_size_are_read() -> None:
    listed = json.loads(KEYS.read_text())
    shapes = {name: tuple(shape) for name, shape in listed["keys"].items()}
    (layout,) = S4D.layouts
    assert layout.fits(listed["config"], shapes)
    with torch.device("meta"):
        config = S4D.configure(layout.configure(listed["config"], shapes))
        module = S4D.build(config)
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    assert (config.hidden_size, config.state_size, config.num_layers) == (256, 64, 4)
    module.load_state_dict(layout.weights(tensors, config), assign=True)


def test_poles_are_those_of_the_paper() -> None:
    n = np.arange(4)
    for kind, turn in (("lin", np.pi * n), ("inv", 8 / np.pi * (8 / (2 * n + 1) - 1))):
        np.testing.assert_allclose(hippo.diagonal_poles(kind, 8).numpy(), -0.5 + 1j * turn)
    np.testing.assert_allclose(hippo.diagonal_poles("real", 8).numpy(), -(n + 1))
    np.testing.assert_allclose(hippo.diagonal_poles("legs", 8).real, -0.5)
    with pytest.raises(intaglio.errors.SourceError, match="they are lin, inv, legs and real"):
        hippo.diagonal_poles("cosine", 8)
    with pytest.raises(intaglio.errors.SourceError, match="an even number"):
        S4D.build(Config(state_size=7))


@pytest.mark.parametrize(("name", "left"), [("s4d", 0.03), ("s4", 0.06)])
def test_a_trained_checkpoint_tells_the_past(name: str, left: float) -> None:
    """Of its input 16 to 128 tokens ago, but for that part of its variance."""
    path = Path(__file__).parents[2] / "models" / "checkpoints" / f"{name}.pt"
    saved = torch.load(path, weights_only=True)
    model = find(saved["model"])
    module = model.build(model.configure(saved["config"]))
    module.load_state_dict(saved["state_dict"])
    assert isinstance(module, Stack)
    with torch.no_grad():
        loss = Delays().loss(module, torch.Generator().manual_seed(1))
    assert loss <= left


def test_the_tiny_version_has_one_output_for_each_delay() -> None:
    signal = S4D.inputs(TINY, 1, 5, torch.Generator().manual_seed(0))["signal"]
    assert S4D.build(TINY)(signal).shape == (1, 5, TINY.output_size)
