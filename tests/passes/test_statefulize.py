"""Statefulize: every accepted graph steps exactly, every other one is refused by name."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intaglio.errors import PassError
from intaglio.ops import linear_attention
from intaglio.passes import evaluate, pipeline, stepping
from intaglio.passes.base import Context
from intaglio.state import Layout

D, HEADS, KV_HEADS, SIZE, VOCABULARY = 32, 4, 2, 8, 31
ROWS = 13  # of learned positions
T = 6
Traced = Callable[[nn.Module], tuple[ir.Model, Context]]


class Residual(nn.Module):
    """Embedding, a mixer in a residual stream, logits: what a language model is around it."""

    def __init__(self, *mixers: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, D)
        self.layers = nn.ModuleList(mixers)
        self.head = nn.Linear(D, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        logits: Tensor = self.head(x)
        return logits


class Attention(nn.Module):
    """Grouped-query attention in the spellings of positions, masks and heads found in the wild."""

    table: Tensor
    memory: Tensor

    def __init__(
        self,
        positions: str = "rope",
        window: int | None = None,
        *,
        kv_heads: int = KV_HEADS,
        repeat: str = "",
        bias: str = "",
        causal: bool = True,
        cross: bool = False,
        manual: bool = False,
    ) -> None:
        super().__init__()
        self.q = nn.Linear(D, HEADS * SIZE)
        self.k = nn.Linear(D, kv_heads * SIZE)
        self.v = nn.Linear(D, kv_heads * SIZE)
        self.out = nn.Linear(HEADS * SIZE, D)
        self.register_buffer("table", torch.randn(ROWS, SIZE))
        self.register_buffer("memory", torch.randn(1, kv_heads, 5, SIZE))
        self.positions, self.window, self.repeat = positions, window, repeat
        self.bias, self.causal, self.cross, self.manual = bias, causal, cross, manual

    def rotate(self, x: Tensor) -> Tensor:
        time = x.shape[2]
        if self.positions == "table":
            return x * self.table[:time]
        steps = torch.arange(time, dtype=torch.float32)
        if self.positions == "expanded":
            steps = steps[None].expand(x.shape[0], time)
        angle = steps[..., None] * torch.tensor([1.0, 0.3, 0.1, 0.03])
        if self.positions == "expanded":
            angle = angle[:, None]
        if self.positions == "transposed":
            angle = (torch.tensor([[1.0], [0.3], [0.1], [0.03]]) @ steps[None, :]).T
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def mask(self, time: int) -> Tensor | None:
        i = torch.arange(time)
        behind = i[:, None] - i[None, :]
        if self.bias == "alibi":
            bias = -0.5 * behind.abs().float()
            return bias.masked_fill(behind < 0, float("-inf"))
        if self.bias == "float":
            zeros = torch.zeros(time, time)
            return zeros.masked_fill(behind < 0, torch.finfo(torch.float32).min)
        if self.bias == "both":
            return behind.abs() < 3
        if self.window is not None:
            return (behind >= 0) & (behind < self.window)
        return None

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q, k, v = (
            layer(x).view(batch, time, -1, SIZE).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        if self.positions:
            q, k = self.rotate(q), self.rotate(k)
        if self.repeat == "interleave":
            k, v = (t.repeat_interleave(HEADS // t.shape[1], 1) for t in (k, v))
        if self.repeat == "expand":
            k, v = (
                t[:, :, None].expand(-1, -1, HEADS // t.shape[1], -1, -1).flatten(1, 2)
                for t in (k, v)
            )
        if self.repeat == "tile":
            k, v = (t.repeat(1, HEADS // t.shape[1], 1, 1) for t in (k, v))
        if self.cross:
            k, v = (self.memory.expand(batch, -1, -1, -1) for _ in "kv")
        if self.manual:
            k, v = (t.repeat_interleave(HEADS // t.shape[1], 1) for t in (k, v))
            scores = (q @ k.transpose(-1, -2)) / SIZE**0.5
            future = torch.ones(time, time, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, float("-inf")) if self.causal else scores
            y = scores.softmax(-1) @ v
        else:
            mask = self.mask(time)
            y = F.scaled_dot_product_attention(
                q, k, v, mask, is_causal=self.causal and mask is None, enable_gqa=not self.repeat
            )
        result: Tensor = self.out(y.transpose(1, 2).reshape(batch, time, HEADS * SIZE))
        return result


class Convolution(nn.Module):
    """A causal convolution over time in the spellings found in the wild."""

    def __init__(self, spelling: str, groups: int = D, dilation: int = 1, kernel: int = 4) -> None:
        super().__init__()
        self.spelling, self.reach = spelling, (kernel - 1) * dilation
        padding = {"pad": 0, "symmetric": self.reach // 2}.get(spelling, self.reach)
        self.conv = nn.Conv1d(D, D, kernel, groups=groups, dilation=dilation, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        time = x.shape[1]
        x = x.transpose(1, 2)
        if self.spelling == "pad":
            y = F.silu(self.conv(F.pad(x, (self.reach, 0))))
        elif self.spelling == "trim":
            y = F.silu(self.conv(x)[..., :time])
        elif self.spelling == "trim after":
            y = F.silu(self.conv(x))[..., : -self.reach]
        else:
            y = self.conv(x)
        return y.transpose(1, 2)


class Recurrence(nn.Module):
    """Linear attention with a data-dependent decay and, for the delta rules, a write strength."""

    def __init__(self, rule: str, *, per_key: bool = False) -> None:
        super().__init__()
        self.rule = rule
        self.qkv = nn.Linear(D, 3 * D)
        self.gate = nn.Linear(D, D if per_key else HEADS)
        self.beta = nn.Linear(D, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        k = F.normalize(k.unflatten(-1, (HEADS, SIZE)), dim=-1).flatten(-2)
        y, _ = linear_attention(
            q,
            k,
            v,
            decay=F.logsigmoid(self.gate(x)) if "gated" in self.rule else None,
            beta=self.beta(x).sigmoid() if "delta" in self.rule else None,
            update_rule=self.rule,
            q_num_heads=HEADS,
            kv_num_heads=HEADS,
            scale=0.5,
        )
        return y


class Flattened(nn.Module):
    """A feed-forward that merges batch and time, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.reshape(-1, D))
        return y.relu().view(x.shape)


class Learned(nn.Module):
    """Learned positions, added to the residual stream."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, D)
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "slice":
            rows = self.table.weight[: x.shape[1]]
        else:
            rows = self.table(torch.arange(x.shape[1]))
        return rows.expand(x.shape[0], -1, -1)


ACCEPTED: dict[str, Callable[[], Sequence[nn.Module]]] = {
    "rope": lambda: [Attention()],
    "equal heads": lambda: [Attention(kv_heads=HEADS)],
    "no positions": lambda: [Attention("")],
    "positions expanded over the batch": lambda: [Attention("expanded")],
    "positions along the last axis": lambda: [Attention("transposed")],
    "rows of a table": lambda: [Attention("table")],
    "two layers": lambda: [Attention(), Attention()],
    "window": lambda: [Attention(window=3)],
    "window and full": lambda: [Attention(window=2), Attention(), Attention(window=4)],
    "window wider than the sequence": lambda: [Attention(window=50)],
    "float mask": lambda: [Attention(bias="float")],
    "heads repeated": lambda: [Attention(repeat="interleave")],
    "heads expanded": lambda: [Attention(repeat="expand")],
    "heads tiled": lambda: [Attention(repeat="tile")],
    "convolution padded": lambda: [Convolution("pad")],
    "convolution trimmed": lambda: [Convolution("trim")],
    "convolution trimmed after its activation": lambda: [Convolution("trim after")],
    "full convolution": lambda: [Convolution("pad", groups=1)],
    "dilated convolution": lambda: [Convolution("trim", dilation=2)],
    "kernel of one": lambda: [Convolution("pad", kernel=1)],
    "linear": lambda: [Recurrence("linear")],
    "gated": lambda: [Recurrence("gated")],
    "gated per key": lambda: [Recurrence("gated", per_key=True)],
    "delta": lambda: [Recurrence("delta")],
    "gated delta": lambda: [Recurrence("gated_delta")],
    "attention by hand": lambda: [Attention("", manual=True)],
    "token shift": lambda: [Planted(lambda x: F.pad(x, (0, 0, 1, -1)))],
    "hybrid": lambda: [Convolution("trim"), Recurrence("gated_delta"), Attention(), Flattened()],
    "learned positions": lambda: [Learned("embedding"), Attention("")],
    "learned positions sliced": lambda: [Learned("slice"), Attention("")],
}


def compositions(length: int) -> list[list[int]]:
    """Every way to give `length` tokens in parts."""
    return [[length]] + [
        [first, *rest] for first in range(1, length) for rest in compositions(length - first)
    ]


def stepped(
    module: nn.Module, traced: Traced, kv: str = "static", batch: int | None = None
) -> tuple[ir.Model, Context]:
    model, context = traced(module)
    context.batch = batch
    make_step(model, context, kv)
    return model, context


def make_step(model: ir.Model, context: Context, kv: str) -> None:
    """From the training form to the graph that ONNX Runtime steps, in place."""
    pipeline.run(model, pipeline.standard(kv), context)  # type: ignore[arg-type]
    pipeline.run(model, pipeline.lowering("ort"), context)


@pytest.mark.parametrize("name", ACCEPTED)
def test_any_split_of_the_sequence_equals_one_call_of_the_module(name: str, traced: Traced) -> None:
    """All 32 splits of six tokens, for one to three rows, in both cache layouts."""
    torch.manual_seed(0)
    module = Residual(*ACCEPTED[name]())
    cached = any(isinstance(layer, Attention) for layer in module.layers)
    training, found = traced(module)
    for kv in ("static", "grow") if cached else ("static",):
        model, context = training.clone(), Context(max_context=found.max_context)
        make_step(model, context, kv)
        assert context.states or name == "kernel of one"
        session = evaluate.session(model)
        for batch in (1, 2, 3):
            ids = torch.randint(VOCABULARY, (batch, T))
            with torch.no_grad():
                wanted = module(ids).numpy()
            for parts in compositions(T):
                feeds = {"input_ids": ids.numpy()}
                got = stepping.roll(model, context.states, feeds, parts, session)
                np.testing.assert_allclose(got["logits"], wanted, atol=1e-5, err_msg=str(parts))


def test_group_query_attention_steps_exactly_where_the_batch_is_one(traced: Traced) -> None:
    """The fused form that batch 1 allows, over all splits."""
    torch.manual_seed(0)
    module = Residual(Attention(), Attention("table"))
    model, context = stepped(module, traced, batch=1)
    assert "GroupQueryAttention" in {node.op_type for node in model.graph}
    ids = torch.randint(VOCABULARY, (1, T))
    with torch.no_grad():
        wanted = module(ids).numpy()
    session = evaluate.session(model)
    for parts in compositions(T):
        got = stepping.roll(model, context.states, {"input_ids": ids.numpy()}, parts, session)
        np.testing.assert_allclose(got["logits"], wanted, atol=1e-5, err_msg=str(parts))


@pytest.mark.parametrize("positions", ["rope", "expanded", "transposed", "table"])
def test_rows_may_stand_at_different_positions(positions: str, traced: Traced) -> None:
    """Each row counts from its own past_length, in its positions, caches and windows."""
    torch.manual_seed(0)
    module = Residual(Attention(positions), Attention(positions, window=3), Learned("embedding"))
    model, context = stepped(module, traced)
    session = evaluate.session(model)
    names = [output.name for output in session.get_outputs()]
    rows, past = [], [2, 5]
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, 8))
    for row, length in enumerate(past):
        feeds = {
            "input_ids": ids[row : row + 1, :length],
            "past_length": np.zeros(1, np.int64),
            **stepping.first_states(context.states, 1, capacity=ROWS),
        }
        rows.append(dict(zip(names, session.run(names, feeds), strict=True)))
    states = {
        spec.input: np.concatenate([row[spec.output] for row in rows]) for spec in context.states
    }
    following = np.stack([ids[row, length : length + 2] for row, length in enumerate(past)])
    feeds = {"input_ids": following, "past_length": np.array(past), **states}
    got = dict(zip(names, session.run(names, feeds), strict=True))["logits"]

    for row, length in enumerate(past):
        with torch.no_grad():
            wanted = module(torch.from_numpy(ids[row : row + 1, : length + 2])).numpy()
        np.testing.assert_allclose(got[row], wanted[0, length:], atol=1e-5)


class Planted(nn.Module):
    """A mixer given by a function of the residual stream [batch, time, D]."""

    def __init__(self, function: Callable[[Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return self.function(x)


def last_only(x: Tensor) -> Tensor:
    return x[:, -1:].expand_as(x)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mean over time": (
        lambda: Planted(lambda x: x - x.mean(1, keepdim=True)),
        r"layers\.0: ReduceMean .* reduces over time",
    ),
    "maximum over time": (
        lambda: Planted(lambda x: x - x.amax(1, keepdim=True)),
        r"layers\.0: ReduceMax .* reduces over time",
    ),
    "cumulative sum": (
        lambda: Planted(lambda x: x.cumsum(1)),
        r"layers\.0: CumSum .* accumulates over time",
    ),
    "flip": (lambda: Planted(lambda x: x.flip(1)), r"layers\.0: Slice .* another order"),
    "last token for all": (lambda: Planted(last_only), r"layers\.0: Slice .* some of the tokens"),
    "token ahead": (
        lambda: Planted(lambda x: F.pad(x, (0, 0, -1, 1))),
        r"layers\.0: (Pad|Slice) .* (tokens|padded)",
    ),
    "softmax over time": (
        lambda: Planted(lambda x: x.softmax(1)),
        r"layers\.0: Softmax .* normalises over time",
    ),
    "norm over time": (
        lambda: Planted(lambda x: F.layer_norm(x.transpose(1, 2), [x.shape[1]]).transpose(1, 2)),
        r"layers\.0: \w+ .* over time",
    ),
    "mean by division": (
        lambda: Planted(lambda x: x / x.shape[1]),
        r"layers\.0: \w+ .* number of tokens",
    ),
    "reversed positions": (
        lambda: Planted(lambda x: x * torch.arange(x.shape[1], 0, -1)[None, :, None]),
        r"layers\.0: \w+ .* (positions|number of tokens)",
    ),
    "matmul over time": (
        lambda: Planted(lambda x: x @ (x.transpose(1, 2) @ x)),
        r"layers\.0: MatMul .* (sums over time|loses)",
    ),
    "bidirectional attention": (
        lambda: Attention(causal=False),
        r"layers\.0: Attention .* attend to later",
    ),
    "bidirectional window": (
        lambda: Attention(bias="both"),
        r"layers\.0: Attention .* neither causal nor a sliding window",
    ),
    "cross attention": (
        lambda: Attention(cross=True, causal=False),
        r"layers\.0: Attention .* (cross attention|outside the sequence)",
    ),
    "ALiBi": (
        lambda: Attention(bias="alibi"),
        r"layers\.0: Attention .* neither causal nor a sliding window",
    ),
    "attention by hand": (
        lambda: Attention(manual=True, causal=False),
        r"layers\.0: Attention .* later ones",
    ),
    "symmetric convolution": (
        lambda: Convolution("symmetric", kernel=3),
        r"layers\.0\.conv: Conv .* looks 1 tokens ahead",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_tokens_is_refused_by_name(name: str, traced: Traced) -> None:
    """The message says which module and which operator, and why."""
    make, message = REFUSED[name]
    torch.manual_seed(0)
    model, context = traced(Residual(make()))
    with pytest.raises(PassError, match=message):
        pipeline.run(model, pipeline.standard(), context)


@pytest.mark.parametrize("spelling", ["embedding", "slice"])
def test_a_table_of_positions_ends_the_context(spelling: str, traced: Traced) -> None:
    """Thirteen rows of learned positions allow thirteen tokens, however they are looked up."""
    model, context = stepped(Residual(Learned(spelling), Attention("")), traced)
    assert context.max_context == ROWS
    assert any(node.op_type == "Gather" for node in model.graph)


def test_repeated_heads_are_cached_once(traced: Traced) -> None:
    """Keys repeated by head are cached before they are repeated; tiled ones stay as they are."""
    heads = {
        repeat: stepped(Residual(Attention(repeat=repeat)), traced)[1].states[0].shape[1]
        for repeat in ("interleave", "expand", "tile")
    }
    assert heads == {"interleave": KV_HEADS, "expand": KV_HEADS, "tile": HEADS}


def test_states_are_named_after_their_layer_and_told_apart_within_it(traced: Traced) -> None:
    """Names are those of onnxruntime-genai; two convolutions of one layer keep both their names."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_conv, self.k_conv = Convolution("trim"), Convolution("trim")

        def forward(self, x: Tensor) -> Tensor:
            product: Tensor = self.q_conv(x) * self.k_conv(x)
            return product

    _, context = stepped(Residual(Recurrence("gated"), Attention(), Two()), traced)
    assert [(spec.input, spec.output, spec.module, spec.layer) for spec in context.states] == [
        ("past.0.recurrent", "present.0.recurrent", "layers.0", 0),
        ("past_key_values.1.key", "present.1.key", "layers.1", 1),
        ("past_key_values.1.value", "present.1.value", "layers.1", 1),
        ("past.2.conv.q_conv.conv", "present.2.conv.q_conv.conv", "layers.2.q_conv.conv", 2),
        ("past.2.conv.k_conv.conv", "present.2.conv.k_conv.conv", "layers.2.k_conv.conv", 2),
    ]


def test_a_window_keeps_its_last_entries_only(traced: Traced) -> None:
    """A window of w carries w - 1 keys whatever the context, in both cache layouts."""
    for kv in ("static", "grow"):
        _, context = stepped(Residual(Attention(window=4)), traced, kv)
        for spec in context.states:
            assert spec.layout is Layout.WINDOW
            assert spec.shape == ("batch", KV_HEADS, 3, SIZE)
