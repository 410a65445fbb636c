"""Hoist: what conditions alone decide is computed once, and exactly that."""

import onnx_ir as ir
import pytest
from conditioned import VOCABULARY, hoisted
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import PassError
from intaglio.passes.base import Context
from intaglio.passes.exact.hoist import Hoist
from intaglio.state import Layout

WIDTH, HEADS = 8, 2
IDS = {"ids": ("batch", "time")}


class Decoder(nn.Module):
    """Causal attention, then attention to `memory`, [batch, source, width]; heads as views."""

    def __init__(self, kv_heads: int = HEADS) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.own = nn.Linear(WIDTH, 3 * WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, kv_heads * WIDTH // HEADS)
        self.value = nn.Linear(WIDTH, kv_heads * WIDTH // HEADS)
        self.kv_heads = kv_heads

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.reshape(*x.shape[:2], heads, WIDTH // HEADS).transpose(1, 2)

    def decode(self, ids: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """What each token makes of those before it, and of `memory`."""
        x: Tensor = self.embed(ids)
        q, k, v = (self._split(part, HEADS) for part in self.own(x).chunk(3, -1))
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        keys, values = (self._split(f(memory), self.kv_heads) for f in (self.key, self.value))
        keys, values = (
            part.repeat_interleave(HEADS // self.kv_heads, 1) if self.kv_heads < HEADS else part
            for part in (keys, values)
        )
        allowed = None if mask is None else mask[:, None, None].bool()
        query = self._split(self.query(x), HEADS)
        found = F.scaled_dot_product_attention(query, keys, values, allowed)
        return x + found.transpose(1, 2).flatten(2)


class Plain(Decoder):
    """Memory and mask are given."""

    def forward(self, ids: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        return self.decode(ids, memory, mask)


class OneHead(Decoder):
    """One head of keys and values for all queries."""

    def __init__(self) -> None:
        super().__init__(kv_heads=1)

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        return self.decode(ids, memory)


class Encoded(Decoder):
    """The memory comes of an encoder: a recurrence, a convolution that halves, a pooled part."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.halve = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)

    def forward(self, memory: Tensor, ids: Tensor) -> Tensor:
        read: Tensor = self.halve(self.read(memory)[0].mT).mT
        return self.decode(ids, read) * read.mean(1, keepdim=True).sigmoid()


class Modulated(nn.Module):
    """A label, a vector without batch and a number shift and scale every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.labels = nn.Embedding(VOCABULARY, WIDTH)
        self.modulate = nn.Linear(WIDTH, 2 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, label: Tensor, ids: Tensor, bias: Tensor, guidance: Tensor) -> Tensor:
        scale, shift = self.modulate(F.silu(self.labels(label)))[:, None].chunk(2, -1)
        x = self.norm(self.embed(ids)).cumsum(1)
        y: Tensor = (x * (1 + scale) + shift + bias) * guidance.exp()
        return y


class Broadcast(nn.Module):
    """A table is cheap to make of its two edges."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 4)

    def forward(self, ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        table = rows[:, :, None].tanh() + columns[:, None]
        y: Tensor = (self.embed(ids).cumsum(1) @ table).sum(-1, keepdim=True)
        return y


class Leaks(nn.Module):
    """An output that no token changes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)

    def forward(self, ids: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(ids) + memory[:, :1], memory.exp()


MEMORY = {"memory": ("batch", "source", WIDTH)}
PLAIN = {**IDS, **MEMORY, "mask": ("batch", "source")}
EDGES = {"rows": ("batch", 4), "columns": ("batch", "width")}
HEAD = WIDTH // HEADS


def kinds(model: ir.Model | None) -> list[str]:
    """The operators of a graph."""
    assert model is not None
    return [node.op_type for node in model.graph]


def prepared(context: Context) -> dict[str, tuple[int | str, ...]]:
    """Shapes of the states that no step changes, by name."""
    return {spec.input: spec.shape for spec in context.states if spec.layout is Layout.PREPARED}


@pytest.mark.parametrize("first", [False, True], ids=["tokens first", "conditions first"])
def test_keys_and_values_of_cross_attention_are_computed_once(first: bool) -> None:
    """Their products leave the step, wherever the number of rows is read from."""
    shapes = dict(reversed(PLAIN.items())) if first else PLAIN
    step, context = hoisted(Plain(), shapes)
    heads = ("batch", HEADS, "source", HEAD)
    assert prepared(context) == {
        "prepared.key": heads,
        "prepared.value": heads,
        "prepared.mask": ("batch", 1, 1, "source"),
    }
    assert kinds(context.prepare).count("MatMul") == 2
    assert kinds(step).count("MatMul") == 2
    assert {"memory", "mask"}.isdisjoint(str(value.name) for value in step.graph.inputs)


def test_repeated_heads_are_carried_once() -> None:
    """What an Expand makes large is expanded in the step."""
    _, context = hoisted(OneHead(), {**IDS, **MEMORY})
    assert set(prepared(context).values()) == {("batch", 1, "source", HEAD)}


def test_an_encoder_is_no_part_of_the_step() -> None:
    """Whatever it is made of; a length that it changes is an axis of the states."""
    step, context = hoisted(Encoded(), {**MEMORY, **IDS})
    assert {"RNN", "Conv"} <= set(kinds(context.prepare))
    assert {"RNN", "Conv", "Scan"}.isdisjoint(kinds(step))
    assert [len(shape) for shape in prepared(context).values()] == [4, 4, 3]


def test_conditions_need_no_axis_of_rows() -> None:
    """Modulation is computed once; what is given as it is needed is carried as it is."""
    shapes = {"label": ("batch",), **IDS, "bias": (WIDTH,), "guidance": ()}
    step, context = hoisted(Modulated(), shapes)
    assert sorted(prepared(context).values(), key=len) == [
        (), (WIDTH,), ("batch", 1, WIDTH), ("batch", 1, WIDTH),
    ]  # fmt: skip
    assert {"MatMul", "Gemm", "Exp"}.isdisjoint(kinds(step))


def test_a_broadcast_is_made_in_the_step_of_what_it_is_made_of() -> None:
    """Carried are the edges; the tanh of one, which is no broadcast, is computed once."""
    step, context = hoisted(Broadcast(), {**IDS, **EDGES})
    assert set(prepared(context).values()) == {("batch", 4, 1), ("batch", 1, "width")}
    assert "Tanh" in kinds(context.prepare)
    assert "Tanh" not in kinds(step)


def test_an_output_of_conditions_alone_is_refused() -> None:
    """It is no result of a step."""
    with pytest.raises(PassError, match=r"output .* has no time axis"):
        hoisted(Leaks(), {**IDS, **MEMORY})


def test_what_changes_nothing_is_told_apart() -> None:
    """There would be nothing to prepare, and nobody would see that an input is lost."""
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 23]>
        g (float[batch, time, 4] x, float[batch, 3] label) => (float[batch, time, 4] y)
        { unread = Exp (label)  y = Tanh (x) }
    """)
    with pytest.raises(PassError, match="no result depends on 'label', given once"):
        Hoist().run(model, Context())
