"""Statefulize: every accepted graph steps exactly, every other one is refused by name."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from mixers import (
    HEADS,
    KV_HEADS,
    ROWS,
    SIZE,
    VOCABULARY,
    Attention,
    Convolution,
    Flattened,
    Learned,
    Planted,
    Recurrence,
    Residual,
    Routed,
    Turned,
    last_only,
)
from torch import Tensor, nn

from intaglio.errors import PassError
from intaglio.passes import evaluate, pipeline, stepping
from intaglio.passes.base import Context
from intaglio.state import Layout

T = 6
Traced = Callable[[nn.Module], tuple[ir.Model, Context]]


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
    "ALiBi": lambda: [Attention(bias="alibi")],
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
    "positions on several axes, complex ones, a router": lambda: [
        Turned(),
        Routed(),
        Attention(""),
    ],
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


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mean over time": (
        lambda: Planted(lambda x: x - x.mean(1, keepdim=True)),
        r"layers\.0: ReduceMean .* reduces over time",
    ),
    "maximum over time": (
        lambda: Planted(lambda x: x - x.amax(1, keepdim=True)),
        r"layers\.0: ReduceMax .* reduces over time",
    ),
    "sum of what comes later": (
        lambda: Planted(lambda x: x.flip(1).cumsum(1).flip(1)),
        r"layers\.0: CumSum .* sums up what comes later",
    ),
    "sum over rows": (
        lambda: Planted(lambda x: x.transpose(0, 1).cumsum(0).transpose(0, 1)),
        r"layers\.0: CumSum .* not \[batch, \.\.\., time, \.\.\.\]",
    ),
    "flip": (lambda: Planted(lambda x: x.flip(1)), r"layers\.0: Slice .* another order"),
    "last token for all": (
        lambda: Planted(last_only),
        r"layers\.0: Expand .* after the last token",
    ),
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
        r"layers\.0: \w+ .* only constants keep tokens apart",
    ),
    "mean by division": (
        lambda: Planted(lambda x: x / x.shape[1]),
        r"layers\.0: \w+ .* number of tokens",
    ),
    "reversed positions": (
        lambda: Planted(lambda x: x * torch.arange(x.shape[1], 0, -1)[None, :, None]),
        r"layers\.0: Slice .* another order",
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
        r"layers\.0: Attention .* may allow a token to attend to later ones",
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
