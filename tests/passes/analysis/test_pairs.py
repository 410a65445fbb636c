"""Masks, biases and attention written out are computed for the positions at hand, exactly."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from traced import VOCABULARY, Traced

from intaglio.errors import PassError
from intaglio.passes import evaluate, pipeline, stepping
from intaglio.passes.base import Context
from intaglio.state import PAST_LENGTH

WIDTH, HEADS, T = 16, 2, 23
INF, LOW = float("-inf"), torch.finfo(torch.float32).min
WIDTHS = torch.tensor([9, 2])[:, None, None]
HOLE = torch.ones(64, 64).tril()
HOLE[13, 5] = 0
DISTANCES = torch.randn(199, generator=torch.Generator().manual_seed(0))

Positions = tuple[Tensor, Tensor]
Mask = Callable[[Tensor, Tensor, Tensor], Tensor]
Attend = Callable[["Layer", Tensor, Tensor, Tensor, Positions], Tensor]


class Layer(nn.Module):
    """Attention under a mask, or written out."""

    def __init__(self, mask: Mask | None = None, attend: Attend | None = None) -> None:
        super().__init__()
        self.mask, self.attend = mask, attend
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.sinks = nn.Parameter(torch.randn(HEADS))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        t = torch.arange(x.shape[1])
        i, j = t[:, None], t[None]
        if self.attend is not None:
            y = self.attend(self, q, k, v, (i, j))
        else:
            assert self.mask is not None
            y = F.scaled_dot_product_attention(q, k, v, self.mask(i, j, ids))
        return y.transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(layers)

    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x, input_ids).tanh()
        return x


def low(allowed: Tensor, fill: float = INF) -> Tensor:
    return torch.where(allowed, 0.0, fill)


def same(values: Tensor) -> Tensor:
    return values[:, None, :, None] == values[:, None, None, :]


MASKS: dict[str, Mask] = {
    "itself alone": lambda i, j, _: i == j,
    "sinks and window": lambda i, j, _: (j <= i) & ((i - j < 6) | (j < 2)),
    "chunks": lambda i, j, _: (j <= i) & (torch.floor(i * 0.2) == torch.floor(j * 0.2)),
    "a width for each head": lambda i, j, _: (j <= i) & (i - j < WIDTHS),
    "a hole in a table": lambda i, *_: HOLE[: i.shape[0], : i.shape[0]] > 0,
    "a bias by distance": lambda i, j, _: low(j <= i) + DISTANCES[j - i + 99],
    "triangle and bias": lambda i, j, _: torch.full((i.shape[0],) * 2, LOW).triu(1) + 0.1 * j,
    "documents": lambda i, j, ids: (j <= i) & same((ids == 2).long().cumsum(1)),
    "padding": lambda i, j, ids: (j <= i) & ((ids > 9)[:, None, None, :] | (i == j)),
    "a bias of the key": lambda i, j, ids: low(j <= i) + (ids * 0.1)[:, None, None, :],
    "a bias of the query": lambda i, j, ids: low(j <= i) + (ids * 0.01)[:, None, :, None] * j,
}


def capped(layer: Layer, q: Tensor, k: Tensor, v: Tensor, at: Positions) -> Tensor:
    del layer
    return ((q @ k.mT).tanh() * 3 + low(at[1] <= at[0], LOW)).softmax(-1) @ v


def sinks(layer: Layer, q: Tensor, k: Tensor, v: Tensor, at: Positions) -> Tensor:
    """A learned score that takes weight away, as in GPT-OSS."""
    scores = q @ k.mT + low(at[1] <= at[0], LOW)
    sink = layer.sinks.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[2], -1)
    scores = torch.cat((scores, sink), -1)
    return (scores - scores.amax(-1, keepdim=True)).softmax(-1)[..., :-1] @ v


def merged(layer: Layer, q: Tensor, k: Tensor, v: Tensor, at: Positions) -> Tensor:
    """Heads merged with the batch, and ALiBi, as in Bloom."""
    slopes = layer.sinks.abs()[:, None, None] * at[1][None]
    bias = slopes.repeat(q.shape[0], 1, 1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.unflatten(torch.baddbmm(bias, q, k.mT), 0, (-1, HEADS))
    weights = scores.masked_fill(at[1] > at[0], LOW).softmax(-1).flatten(0, 1)
    return torch.unflatten(torch.bmm(weights, v), 0, (-1, HEADS))


def decayed(layer: Layer, q: Tensor, k: Tensor, v: Tensor, at: Positions) -> Tensor:
    """No softmax: later tokens have the weight zero."""
    del layer
    i, j = at
    return (q @ k.mT * torch.where(j <= i, 0.9 ** (i - j).clamp(min=0), 0.0)) @ v


def exponentials(layer: Layer, q: Tensor, k: Tensor, v: Tensor, at: Positions) -> Tensor:
    """Sums over keys of their own, which other values take."""
    del layer
    scores = (q @ k.mT).masked_fill(at[1] > at[0], INF)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (weights / weights.sum(-1, keepdim=True)) @ v


def forgetting(layer: Layer, q: Tensor, k: Tensor, v: Tensor, at: Positions) -> Tensor:
    del layer
    past = F.logsigmoid(q.mean(-1)).cumsum(-1)
    scores = q @ k.mT + past[..., :, None] - past[..., None, :]
    return scores.masked_fill(at[1] > at[0], INF).softmax(-1) @ v


def one_key_head(layer: Layer, q: Tensor, k: Tensor, v: Tensor, at: Positions) -> Tensor:
    del layer, at
    return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], is_causal=True)


def time_mix(layer: Layer, q: Tensor, k: Tensor, v: Tensor, at: Positions) -> Tensor:
    """RWKV-4's weights of all pairs: each channel decays by itself, a token has its own bonus."""
    rates, bonus = layer.qkv.bias[:WIDTH].exp(), layer.qkv.bias[-WIDTH:]
    t = torch.arange(q.shape[2])
    distance = (t[:, None] - 1.0 - t[None]) * 0.1
    far = torch.where((at[1] < at[0])[..., None], -distance[..., None] * rates, INF)
    pairs = torch.where((at[1] == at[0])[..., None], bonus, far)
    k, v = (x.transpose(1, 2).flatten(2)[:, None] for x in (k, v))
    weights = torch.exp(pairs[None] + k)
    sums = (weights * v).sum(2) / weights.sum(2)
    return torch.unflatten(sums, -1, (HEADS, -1)).transpose(1, 2)


WRITTEN_OUT = (capped, sinks, merged, decayed, exponentials, forgetting, one_key_head, time_mix)


def weigh_first(layer: Layer, q: Tensor, k: Tensor, v: Tensor, at: Positions) -> Tensor:
    """The sum of the weights is over later tokens too."""
    del layer
    return (q @ k.mT).softmax(-1).masked_fill(at[1] > at[0], 0.0) @ v


@pytest.fixture(scope="module", params=["masks", "written out"])
def model(request: pytest.FixtureRequest, traced: Traced) -> tuple[nn.Module, ir.Model]:
    torch.manual_seed(0)
    layers = [Layer(mask) for mask in MASKS.values()]
    if request.param != "masks":
        layers = [Layer(attend=attend) for attend in WRITTEN_OUT]
    module = Model(*layers)
    return module, traced(module)[0]


def step_graph(training: ir.Model, kv: Any) -> tuple[ir.Model, Context]:
    graph, context = training.clone(), Context()
    pipeline.run(graph, pipeline.standard(kv), context)
    pipeline.run(graph, pipeline.lowering("ort"), context)
    return graph, context


@pytest.mark.parametrize("kv", ["static", "grow"])
def test_any_split_equals_one_call_of_the_module(
    kv: str, model: tuple[nn.Module, ir.Model]
) -> None:
    """Positions, data of tokens, and what is done to scores: three rows."""
    module, training = model
    graph, context = step_graph(training, kv)
    ids = torch.randint(VOCABULARY, (3, T))
    with torch.no_grad():
        wanted = module(ids).numpy()
    session = evaluate.session(graph)
    for parts in ([T], [1] * T, [2, T - 6, 1, 3]):
        got = stepping.roll(graph, context.states, {"input_ids": ids.numpy()}, parts, session)
        np.testing.assert_allclose(next(iter(got.values())), wanted, atol=2e-5, err_msg=str(parts))


def test_rows_stand_at_positions_of_their_own(model: tuple[nn.Module, ir.Model]) -> None:
    """One row has consumed 3 tokens, another 11; two more are given to both."""
    module, training = model
    graph, context = step_graph(training, "static")
    session = evaluate.session(graph)
    names = [output.name for output in session.get_outputs()]
    ids, past = np.random.default_rng(0).integers(0, VOCABULARY, (2, T)), (3, 11)

    def run(feeds: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(names, session.run(names, feeds), strict=True))

    rows = [
        run({
            "input_ids": ids[row : row + 1, :length],
            PAST_LENGTH: np.zeros(1, np.int64),
            **stepping.first_states(context.states, 1, T),
        })
        for row, length in enumerate(past)
    ]  # fmt: skip
    states = {s.input: np.concatenate([row[s.output] for row in rows]) for s in context.states}
    both = np.stack([ids[row, length : length + 2] for row, length in enumerate(past)])
    got = run({"input_ids": both, PAST_LENGTH: np.array(past), **states})[names[0]]
    for row, length in enumerate(past):
        with torch.no_grad():
            wanted = module(torch.from_numpy(ids[row : row + 1, : length + 2])).numpy()
        np.testing.assert_allclose(got[row], wanted[0, length:], atol=2e-5)


def test_weights_of_later_tokens_are_refused(traced: Traced) -> None:
    """That they are taken away after the softmax does not help: its sum has them."""
    training, context = traced(Model(Layer(attend=weigh_first)))
    with pytest.raises(PassError, match=r"layers\.0: \w+ .* gives later tokens a weight"):
        pipeline.run(training, pipeline.standard(), context)


def test_what_is_carried_is_data_of_tokens_alone(traced: Traced) -> None:
    """A mask of positions carries nothing beside keys and values; documents carry their number."""
    training, _ = traced(Model(Layer(MASKS["sinks and window"]), Layer(MASKS["documents"])))
    _, context = step_graph(training, "static")
    data = [(s.module, s.shape, s.dtype) for s in context.states if s.port == "mask"]
    assert data == [("layers.1", ("batch", 1, "capacity", 1), "int64")]
