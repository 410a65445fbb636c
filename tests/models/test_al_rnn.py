"""AL-RNN: the map of the paper, its start, its regions, and many free steps in one call."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import intaglio
from intaglio.errors import SourceError
from intaglio.models.al_rnn import AL_RNN, AlmostLinearRNN, Config, build, descend, lorenz
from intaglio.runtime import Session

SMALL = Config(units=7, rectified=3, observed=2)
CHECKPOINT = Path(__file__).parents[2] / "models" / "checkpoints" / "al_rnn.pt"
Array = npt.NDArray[np.float64]


def _drawn(config: Config = SMALL) -> AlmostLinearRNN:
    """A network whose regions change, and whose states stay bounded."""
    torch.manual_seed(0)
    module = build(config)
    with torch.no_grad():
        module.W.copy_(0.4 * torch.randn(config.units, config.units))
        module.A.mul_(0.5)
        module.h.copy_(torch.randn(config.units))
    return module


def _followed(module: AlmostLinearRNN, x: Array, seen: Array, units: int) -> Iterator[Array]:
    """The states after each token of one row, by the equations."""
    A, W, h, B = (p.detach().double().numpy() for p in (module.A, module.W, module.h, module.B))
    z, P = x[0] @ B, module.rectified
    z[: x.shape[1]] = x[0]
    for t in range(len(x)):
        if t and seen[t]:
            z[: x.shape[1]] = x[t]
        phi = z.copy()
        phi[units - P :] = np.maximum(phi[units - P :], 0)
        z = A * z + W @ phi + h
        yield z.copy()


@pytest.mark.parametrize("rectified", [3, None, 7])
def test_it_is_the_map_of_the_paper(rectified: int | None) -> None:
    """Starts from x_0 and B, is forced where observed, tells the sign of each rectified unit."""
    module = _drawn(replace(SMALL, rectified=rectified)).double()
    drawn = AL_RNN.inputs(SMALL, 2, 40, torch.Generator().manual_seed(1))
    observation, observed = drawn["observation"].double(), drawn["observed"]
    got = module(observation, observed)
    for row in range(2):
        states = np.array(
            list(_followed(module, observation[row].numpy(), observed[row].numpy(), 7))
        )
        np.testing.assert_allclose(got["prediction"][row].detach(), states[:, :2], rtol=1e-9)
        bits = (states[:, 7 - (rectified or 0) :] > 0) @ (2 ** np.arange(rectified or 0))
        np.testing.assert_array_equal(got["region"][row], bits)
    assert len(np.unique(got["region"])) > (1 if rectified else 0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("al_rnn") / "out"
    inputs = AL_RNN.inputs(SMALL, 3, 12, torch.Generator().manual_seed(0))
    intaglio.export(_drawn(), out, inputs=inputs, steps=64)
    return out


def test_a_hundred_free_steps_in_one_call(bundle: Path) -> None:
    """One observation and then none: 1e-4 of float64 after a hundred steps, 1e-6 after one."""
    drawn = AL_RNN.inputs(SMALL, 1, 100, torch.Generator().manual_seed(2))
    free = np.zeros((1, 100), bool)
    observation = drawn["observation"].numpy()
    got = Session.load(bundle).step({"observation": observation, "observed": free})
    wanted = np.array(list(_followed(_drawn(), observation[0].astype(float), free[0], 7)))[:, :2]
    off = np.abs(got["prediction"][0] - wanted).max(1) / np.abs(wanted).max()
    assert off[0] <= 1e-6
    assert off.max() <= 1e-4
    assert got["region"].dtype == np.int64


def test_only_the_state_is_carried_and_parts_give_the_same(bundle: Path) -> None:
    session, parted = Session.load(bundle), Session.load(bundle)
    assert [state.shape for state in session.entry.states] == [("batch", 7)]
    drawn = AL_RNN.inputs(SMALL, 2, 20, torch.Generator().manual_seed(3))
    inputs = {name: value.numpy() for name, value in drawn.items()}
    wanted, first = session.step(inputs), 0
    for last in (1, 4, 20):
        got = parted.step({name: value[:, first:last] for name, value in inputs.items()})
        for name, value in got.items():
            np.testing.assert_array_equal(value, wanted[name][:, first:last])
        first = last


def test_lorenz_is_on_its_attractor() -> None:
    """Standardised, both wings visited, as far from step to step as a step of 0.01 goes."""
    path = lorenz(4000, 0)
    torch.testing.assert_close(path.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(path.std(0), torch.ones(3), atol=1e-4, rtol=0)
    assert path[:, 0].min() < -1.5
    assert path[:, 0].max() > 1.5
    assert path.diff(dim=0).norm(dim=1).max() < 0.5


def test_what_trains_it_is_the_gradient_of_the_forward_pass() -> None:
    """An observation every 5 tokens: the loss and all gradients, in float64."""
    module = _drawn().double()
    given, wanted = torch.randn(2, 21, 4, 2, generator=torch.Generator().manual_seed(4)).double()
    told = descend(module, given, wanted, 5)
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    module.zero_grad(set_to_none=True)
    observed = (torch.arange(21) % 5 == 0).expand(4, 21)
    loss = (
        (module(given.transpose(0, 1), observed)["prediction"] - wanted.transpose(0, 1))
        .square()
        .mean()
    )
    loss.backward()
    assert told == pytest.approx(loss.item(), rel=1e-12)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-10, atol=1e-12)


def test_the_trained_checkpoint_draws_the_attractor() -> None:
    """Of a free run, from one observation on: both wings, again and again, as wide as they are."""
    saved = torch.load(CHECKPOINT, weights_only=True)
    module = build(AL_RNN.configure(saved["config"]))
    module.load_state_dict(saved["state_dict"])
    start = lorenz(200, 3)[None, :1].expand(1, 4000, 3)
    with torch.no_grad():
        free = module(start, torch.zeros(1, 4000, dtype=torch.bool))
    path, region = free["prediction"][0, 1000:], free["region"][0, 1000:]
    wings = torch.count_nonzero(path[:, 0].sign().diff())
    assert wings >= 10
    assert ((path.std(0) > 0.7) & (path.std(0) < 1.4)).all()
    assert len(region.unique()) == 3


def test_official_checkpoints_are_read() -> None:
    listed = json.loads((Path(__file__).parents[1] / "data" / "keys" / "al_rnn.json").read_text())
    shapes = {name: tuple(shape) for name, shape in listed["keys"].items()}
    (layout,) = AL_RNN.layouts
    assert layout.fits({}, shapes)
    with torch.device("meta"):
        config = AL_RNN.configure(layout.configure(listed["config"], shapes))
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    assert config == Config(units=20, rectified=2, observed=3)
    found = {name: tuple(value.shape) for name, value in AL_RNN.build(config).state_dict().items()}
    assert found == shapes
    assert layout.weights(tensors, config).keys() == shapes.keys()
    assert layout.configure({"P": 0}, shapes)["rectified"] is None  # no unit, not all of them
    with pytest.raises(SourceError, match=r'"P": 2'):
        layout.configure({}, shapes)
    with pytest.raises(KeyError, match="W"):
        layout.weights({name: x for name, x in tensors.items() if name != "W"}, config)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SourceError, match="Of 4 units 5 are observed"):
        AL_RNN.build(Config(units=4, observed=5))
