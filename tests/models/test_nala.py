"""The causal form of norm-aware linear attention: the recurrence, and its state of one size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import intaglio
from intaglio.models.nala import Config, NormAwareAttention, build
from intaglio.models.nalaformer import LinearAttention
from intaglio.runtime import Session

CHECKPOINT = Path(__file__).parents[2] / "models/checkpoints/nala.pt"


def test_the_layer_equals_the_recurrence() -> None:
    """S_t, z_t and o_t token by token, the features and rotations written out."""
    torch.manual_seed(0)
    config = Config(hidden_size=16, num_heads=2, conv_size=3)
    layer = NormAwareAttention(config).double()
    layer.angle.copy_(1 / 10_000 ** (torch.arange(4).double() / 3).repeat_interleave(2))
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    with torch.no_grad():
        got = layer(x)[0]
        q, k, v, gate = layer.qkvg(x)[0].chunk(4, dim=-1)
    size, rows = 8, []
    state, total = np.zeros((2, 2 * size, size)), np.zeros((2, 2 * size))
    for t in range(9):
        row = []
        for head in range(2):
            one = slice(head * size, (head + 1) * size)
            query, key, value = (part[t, one].numpy() for part in (q, k, v))
            norm = np.sqrt((query**2).sum())
            power, unit = 3 * (0.5 + np.tanh(norm)), query / norm
            fq = np.concatenate([np.maximum(s * unit, 0) ** power for s in (1, -1)])
            fk = np.concatenate([np.maximum(s * key, 0) ** 3 for s in (1, -1)])
            angles = t / 10_000 ** (np.arange(4) / 3)
            turn = np.exp(1j * np.tile(angles, 2))
            rq, rk = (
                (f.view(np.complex128) * turn).view(np.float64) for f in (fq.copy(), fk.copy())
            )
            state[head] += rk[:, None] * value
            total[head] += fk
            row.append(rq @ state[head] / (fq @ total[head] + (t + 1) * 1e-6))
        near = layer.lepe.get_parameter("bias").detach().numpy().copy()
        for back in range(3):
            if t >= back:
                near += layer.lepe.weight[:, 0, 2 - back].detach().numpy() * v[t - back].numpy()
        rows.append(np.concatenate(row) + near)
    with torch.no_grad():
        wanted = layer.out_proj(layer.ln(torch.tensor(np.array(rows))) * F.silu(gate))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


def test_the_last_token_sees_what_a_place_of_a_picture_sees() -> None:
    """Without rotation the causal form at the last token is the form for pictures."""
    torch.manual_seed(0)
    config = Config(hidden_size=16, num_heads=2)
    layer = NormAwareAttention(config).double()
    layer.angle.zero_()
    whole = LinearAttention(16, 2).double()
    x = torch.randn(1, 7, 16, dtype=torch.float64)
    none = torch.zeros(7, 8).double()
    for part in (layer.lepe, whole.lepe):
        torch.nn.init.zeros_(part.get_parameter("weight"))
        torch.nn.init.zeros_(part.get_parameter("bias"))
    for name in ("qkvg", "out_proj", "ln"):
        getattr(whole, name).load_state_dict(getattr(layer, name).state_dict())
    with torch.no_grad():
        picture = whole(x.mT[..., None], none, none + 1)[0, :, -1, 0]
        torch.testing.assert_close(layer(x)[0, -1], picture)


def test_the_state_is_as_large_after_any_number_of_tokens(tmp_path: Path) -> None:
    """Of the trained one: parity of all splits, and rows of unequal length are those alone."""
    report = intaglio.export(CHECKPOINT, tmp_path / "b", steps=40)
    assert report.parity is not None
    assert not any("capacity" in spec.shape for spec in report.manifest.main.states)
    session = Session.load(tmp_path / "b")
    tokens = np.random.default_rng(0).integers(0, 256, (3, 9))
    (together,) = session.step({"input_ids": tokens}, lengths=[9, 1, 4]).values()
    for row, length in enumerate((9, 1, 4)):
        session.state.reset()
        (alone,) = session.step({"input_ids": tokens[row : row + 1, :length]}).values()
        np.testing.assert_allclose(together[row, :length], alone[0], rtol=0, atol=1e-5)


def test_heads_of_odd_width_are_told() -> None:
    """Rotations turn pairs."""
    with pytest.raises(ValueError, match="hidden_size = 20 has to be a multiple of two"):
        build(Config(hidden_size=20, num_heads=4))
