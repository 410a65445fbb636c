"""Loops over chunks of tokens go over tokens, or are refused by what a chunk does otherwise."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.loops import roll as rolling
from intaglio.exporter.tracing.loops.loop_streams import PartedError
from intaglio.exporter.tracing.loops.roll import roll
from intaglio.exporter.tracing.trace import trace
from intaglio.passes import pipeline, stepping
from intaglio.passes.base import Context

SIZE, CHUNK = 4, 3
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.qkv = nn.Linear(SIZE, 3 * SIZE)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def source_of(forward: Forward) -> Source:
    torch.manual_seed(0)
    return load_source(Net(forward), inputs={"x": np.zeros((2, 5, SIZE), np.float32)})


def retained(net: Net, x: Tensor) -> Tensor:
    """Retention: the last chunk is as long as it is, and decays by as much."""
    q, k, v = net.qkv(x).chunk(3, -1)
    state, out = x.new_zeros(x.shape[0], SIZE, SIZE), []
    for i in range(0, x.shape[1], CHUNK):
        now = slice(i, i + CHUNK)
        places = torch.arange(q[:, now].shape[1])
        decay = (0.9 ** (places[:, None] - places).clamp(min=0)).tril()
        within = (q[:, now] @ k[:, now].mT * decay) @ v[:, now]
        out.append(within + q[:, now] @ state * 0.9 ** (places + 1)[:, None])
        count = len(places)
        state = 0.9**count * state
        state = state + (k[:, now] * 0.9 ** (count - 1 - places)[:, None]).mT @ v[:, now]
    return torch.cat(out, 1)


def padded(net: Net, x: Tensor) -> Tensor:
    """Heads before tokens, padded to whole chunks, written into a buffer; no first state."""
    time = x.shape[1]
    wide = F.pad(x, (0, 0, 0, -time % CHUNK))
    q, k, v = (y.unflatten(2, (2, 2)).transpose(1, 2) for y in net.qkv(wide).chunk(3, -1))
    state, y = None, torch.zeros_like(v)
    for i, chunk in enumerate(k.split(CHUNK, 2)):
        now = slice(i * CHUNK, (i + 1) * CHUNK)
        y[:, :, now] = (q[:, :, now] @ chunk.mT).tril() @ v[:, :, now]
        if state is not None:
            y[:, :, now] += q[:, :, now] @ state
        new = chunk.mT @ v[:, :, now]
        state = new if state is None else state + new
    return y.transpose(1, 2).flatten(2)[:, :time]


def parallel(net: Net, x: Tensor) -> Tensor:
    """All chunks at once, with the states before them as a sum without a chunk's own."""
    rows, time, _ = x.shape
    wide = F.pad(x, (0, 0, 0, -time % CHUNK))
    q, k, v = (y.view(rows, -1, CHUNK, SIZE) for y in net.qkv(wide).chunk(3, -1))
    own = torch.einsum("bncd,bnce->bnde", k, v)
    before = own.cumsum(1) - own
    weights = (q @ k.mT).masked_fill(torch.ones(CHUNK, CHUNK).triu(1).bool(), -torch.inf)
    y: Tensor = weights.softmax(-1) @ v + q @ before
    return y.view(rows, -1, SIZE)[:, :time]


def both(net: Net, x: Tensor) -> Tensor:
    return padded(net, x) + parallel(net, x)


@pytest.mark.parametrize("forward", [retained, both])
def test_loops_over_chunks_are_stepped_by_tokens(forward: Forward) -> None:
    source = source_of(forward)
    model, context = trace(source).model, Context()
    pipeline.run(model, pipeline.standard(), context)
    inputs = source.random_inputs(3, 11, 1)
    feeds = {name: value.numpy() for name, value in inputs.items()}
    got = stepping.roll(model, context.states, feeds, [1, 5, 1, 4])
    np.testing.assert_allclose(
        next(iter(got.values())), source.module(**inputs).numpy(), rtol=1e-4, atol=1e-5
    )


def ahead(net: Net, x: Tensor) -> Tensor:
    """Tokens of a chunk see each other."""
    q, k, v = net.qkv(x).chunk(3, -1)
    state, out = 0, []
    for i in range(0, x.shape[1], CHUNK):
        now = slice(i, i + CHUNK)
        state = state + k[:, now].mT @ v[:, now]
        out.append(q[:, now] @ state)
    return torch.cat(out, 1)


def shorter(net: Net, x: Tensor) -> Tensor:
    """What the last chunk gives depends on how long it is."""
    q, k, v = net.qkv(x).chunk(3, -1)
    state, out = x.new_zeros(x.shape[0], SIZE, SIZE), []
    for i in range(0, x.shape[1], CHUNK):
        now = slice(i, i + CHUNK)
        out.append((q[:, now] @ state + v[:, now]) / q[:, now].shape[1])
        state = state + k[:, now].mT @ v[:, now]
    return torch.cat(out, 1)


def late(net: Net, x: Tensor) -> Tensor:
    """No chunks, but another rule from some token on, which only the code tells."""
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = (0.9 if t < 12 else 0.5) * h + net.qkv(x[:, t])[:, :SIZE]
        out.append(h)
    return torch.stack(out, 1)


def doubled(net: Net, x: Tensor) -> Tensor:
    """The largest of the tokens so far by doubling (Hillis and Steele)."""
    y: Tensor = net.qkv(x)[..., :SIZE]
    shift = 1
    while shift < x.shape[1]:
        y = torch.maximum(y, F.pad(y[:, :-shift], (0, 0, shift, 0), value=-torch.inf))
        shift *= 2
    return y


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (doubled, "each doubling of the number of tokens"),
        (late, "does something else where there are 13 tokens"),
        (ahead, "chunks of 3 tokens and looks ahead: token 3 sees later ones"),
        (shorter, "chunks of 3 tokens and does something else where there are 1 tokens"),
    ],
)
def test_what_a_chunk_does_otherwise_is_refused(forward: Forward, words: str) -> None:
    with pytest.raises(PartedError, match=words):
        roll(source_of(forward))


def test_a_loop_over_tokens_that_nothing_reads_is_not_unrolled_ever_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its program does not grow with the tokens, but takes as long as they are many to capture."""

    def unread(net: Net, x: Tensor) -> Tensor:
        h = x[:, 0]
        for t in range(x.shape[1]):
            h = h / 2 + x[:, t]
        x.nonzero()
        y: Tensor = net.qkv(x)
        return y

    unrolled = rolling._unrolled

    def watched(source: Source, batch: int, time: int, *prepared: Any) -> Any:
        assert time < 96, "a longer program is asked for"
        return unrolled(source, batch, time, *prepared)

    monkeypatch.setattr(rolling, "_unrolled", watched)
    with pytest.raises(PartedError, match="u0"):
        roll(source_of(unread))
