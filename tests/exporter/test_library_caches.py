"""Caches as Flash Linear Attention lays them out: kept as they are, and the same as ours.

A state there is [B, H, V, K], and what a convolution saw its last W inputs, the token's own among
them; the standard's operators have [B, H, K, V] and W - 1.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.exporter.export import export
from intaglio.models.parts.language_layers import by_head
from intaglio.models.parts.linear_mixers import GatedDeltaNet, Heads, unit
from intaglio.ops import causal_conv_with_state, linear_attention
from intaglio.runtime import Session

HEADS, KEY, VALUE, WIDTH, SIZE = 2, 4, 6, 4, 16
Caches = tuple[Tensor, ...]


class CachedDeltaNet(nn.Module):
    """A Gated DeltaNet that takes and gives back the caches of the library, a token in a call."""

    def __init__(self, mixer: GatedDeltaNet) -> None:
        super().__init__()
        self.mixer = mixer

    def seen(self, name: str, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """A projection of x through its convolution, and the last W of what went in."""
        conv = self.mixer.get_submodule(f"{name}_conv1d")
        rows = self.mixer.get_submodule(f"{name}_proj")(x).transpose(1, 2)
        rows = torch.cat((cache[..., 1:], rows), -1)
        y = F.silu(F.conv1d(rows, conv.get_parameter("weight"), groups=rows.shape[1]))
        return y.transpose(1, 2), rows[..., -WIDTH:]

    def forward(
        self, x: Tensor, recurrent_state: Tensor, conv_state: Caches
    ) -> tuple[Tensor, Tensor, Caches]:
        m, found = self.mixer, []
        for name, cache in zip("qkv", conv_state, strict=True):
            found.append(self.seen(name, x, cache))
        (q, k, v), caches = zip(*found, strict=True)
        q, k, v = (by_head(t, HEADS) for t in (unit(by_head(q, HEADS)).flatten(2), k, v))
        y, state = self.mixed(x, q, unit(k), v, recurrent_state)
        return m.output(y.flatten(2), x), state, caches

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log decays and rates [B, T, H]."""
        m = self.mixer
        return -m.A_log.exp() * F.softplus(m.a_proj(x) + m.dt_bias), m.b_proj(x).sigmoid()

    def mixed(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What one token [B, 1, H, ...] reads, and the state after it, in plain PyTorch."""
        decay, beta = (t[:, 0, :, None] for t in self.gates(x))
        state = decay.exp()[..., None] * state
        written = beta * (v[:, 0] - (state @ k[:, 0, :, :, None])[..., 0])
        state = state + written[..., None] * k[:, 0, :, None]
        return (state @ q[:, 0, :, :, None])[..., 0][:, None] * self.mixer.heads.scale, state


class CachedInParts(CachedDeltaNet):
    """The same for any number of tokens in a call, as the library's kernels have it."""

    def mixed(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        decay, beta = self.gates(x)
        y, after = linear_attention(
            q.flatten(2),
            k.flatten(2),
            v.flatten(2),
            past_state=state.transpose(-1, -2),
            decay=decay,
            beta=beta,
            update_rule="gated_delta",
            q_num_heads=HEADS,
            kv_num_heads=HEADS,
            scale=self.mixer.heads.scale,
        )
        return y, after.transpose(-1, -2)


def mixer() -> GatedDeltaNet:
    torch.manual_seed(0)
    heads = Heads(
        hidden_size=SIZE,
        num_heads=HEADS,
        num_kv_heads=HEADS,
        key_size=KEY,
        value_size=VALUE,
        conv_size=WIDTH,
    )
    return GatedDeltaNet(heads).eval()


def empty(rows: int) -> tuple[Tensor, Caches]:
    channels = (HEADS * KEY, HEADS * KEY, HEADS * VALUE)
    return torch.zeros(rows, HEADS, VALUE, KEY), tuple(
        torch.zeros(rows, c, WIDTH) for c in channels
    )


@pytest.mark.parametrize(
    ("kind", "tokens", "parts"), [(CachedDeltaNet, 1, (1,) * 9), (CachedInParts, 5, (1, 5, 1, 2))]
)
def test_a_module_with_such_caches_is_stepped_with_them_as_they_are(
    kind: type[CachedDeltaNet], tokens: int, parts: tuple[int, ...], tmp_path: Path
) -> None:
    """Its steps are what the mixer gives over all tokens, which carries none."""
    state, caches = empty(2)
    inputs = {"x": torch.randn(2, tokens, SIZE), "recurrent_state": state, "conv_state": caches}
    axes = {"x": ("batch", 1 if tokens == 1 else "time", SIZE)}
    report = export(kind(mixer()), tmp_path / "b", inputs=inputs, axes=axes, steps=8)
    shapes = {spec.input: spec.shape[1:] for spec in report.manifest.main.states}
    x, session = torch.randn(3, sum(parts), SIZE), Session.load(tmp_path / "b")
    pieces = torch.split(x, list(parts), 1)
    found = [session.step({"x": piece.numpy()})["output_0"] for piece in pieces]
    wanted = mixer()(x).detach().numpy()

    assert shapes.pop("recurrent_state") == (HEADS, VALUE, KEY)
    assert {shape[-1] for shape in shapes.values()} == {WIDTH}
    assert len(shapes) == 3
    error = np.abs(np.concatenate(found, 1) - wanted).max()
    assert error <= 1e-5 * np.abs(wanted).max()


def by_the_standard(
    m: GatedDeltaNet, x: Tensor, state: Tensor, caches: Caches
) -> tuple[Tensor, Tensor, Caches]:
    """What x gives by the standard's operators, from their states and to them."""
    found, after = [], []
    for name, cache in zip("qkv", caches, strict=True):
        rows = m.get_submodule(f"{name}_proj")(x).transpose(1, 2)
        weight = m.get_submodule(f"{name}_conv1d").get_parameter("weight")
        y, kept = causal_conv_with_state(rows, weight, past_state=cache, activation="silu")
        found.append(by_head(y.transpose(1, 2), HEADS))
        after.append(kept)
    q, k, v = found
    y, given = CachedInParts(m).mixed(x, unit(q), unit(k), v, state.transpose(-1, -2))
    return m.output(y.flatten(2), x), given.transpose(-1, -2), tuple(after)


def test_such_caches_become_the_standards_and_back() -> None:
    """Axes are exchanged, and the oldest input left out, which nothing reads again."""
    module, x = CachedDeltaNet(mixer()).double(), torch.randn(1, 11, SIZE, dtype=torch.float64)
    state, caches = empty(1)
    state, caches, found = state.double(), tuple(c.double() for c in caches), []
    for token in torch.split(x[:, :6], 1, 1):
        y, state, caches = module(token, state, caches)
        found.append(y)
    ours = state.transpose(-1, -2), tuple(cache[..., 1:] for cache in caches)
    y, state, caches = by_the_standard(module.mixer, x[:, 6:9], *ours)
    found.append(y)
    theirs = state.transpose(-1, -2), tuple(F.pad(cache, (1, 0), value=7.0) for cache in caches)
    for token in torch.split(x[:, 9:], 1, 1):
        y, *theirs = module(token, *theirs)
        found.append(y)

    torch.testing.assert_close(torch.cat(found, 1), module.mixer(x))
