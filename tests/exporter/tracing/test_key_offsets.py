"""Biases that are counted from the last key are counted from the query; others stay as they are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from intaglio.exporter.export import export
from intaglio.exporter.tracing.key_offsets import settle_key_offsets

SLOPES = torch.tensor([0.5, 0.3]).view(2, 1, 1)
STRAIGHT = SLOPES * torch.arange(-63, 1)
BENT = -SLOPES * torch.arange(63, -1, -1).add(1.0).log()


def from_the_end(length: int) -> Tensor:
    return SLOPES * torch.arange(1 - length, 1)


def back(length: int) -> Tensor:
    return -SLOPES * torch.arange(length - 1, -1, -1)


def turned(length: int) -> Tensor:
    return (torch.arange(length).flip(0) * -2).float()[None, :] * SLOPES / 3 + SLOPES


def less_the_last(length: int) -> Tensor:
    index = torch.arange(length, dtype=torch.float32)
    return (index - index[-1:]).view(1, 1, -1) * SLOPES


def less_their_number(length: int) -> Tensor:
    return (2 - (torch.arange(length) - length + 1).unsqueeze(0).neg()) * SLOPES


def of_a_table(length: int) -> Tensor:
    return STRAIGHT[:, :, -length:]


def of_the_end_of_a_table(length: int) -> Tensor:
    return STRAIGHT[:, max(0, 1 - length) :, max(0, 64 - length) :]


class Biased(nn.Module):
    """Causal attention of two heads over [batch, time, 2] with a bias of keys."""

    def __init__(self, bias: Callable[[int], Tensor], how: str = "filled") -> None:
        super().__init__()
        self.bias, self.how = bias, how

    def forward(self, x: Tensor) -> Tensor:
        scores = x.mT.unsqueeze(-1) * x.mT.unsqueeze(-2)
        length = x.shape[1]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        bias = self.bias(length)
        if self.how == "called":
            q = x.mT.unsqueeze(-1)
            bias = torch.zeros(length, length).masked_fill(future, -torch.inf) + bias
            return F.scaled_dot_product_attention(q, q, q, attn_mask=bias)
        if self.how == "where":
            scores = torch.where(future, torch.tensor(-1e9), (scores + bias) * 0.7)
        else:
            scores = (scores + bias).masked_fill(future, -5.0 if self.how == "low" else -1e30)
        return scores.softmax(-1)


def captured(module: nn.Module) -> ExportedProgram:
    shapes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    with torch.no_grad():
        return torch.export.export(
            module, (torch.randn(2, 7, 2),), dynamic_shapes=shapes, strict=False
        )


def counts_back(program: ExportedProgram) -> bool:
    aten = torch.ops.aten
    begins = {aten.arange.start: 0, aten.arange.start_step: 0, aten.slice.Tensor: 2}
    (left,) = ([node] for node in program.graph.nodes if node.op == "output")
    read: dict[fx.Node, None] = {}
    while left:
        read[node := left.pop()] = None
        left += node.all_input_nodes
    starts = [node.args[begins[node.target]] for node in read if node.target in begins]
    flipped = any(node.target is aten.flip.default for node in read)
    return flipped or any(isinstance(start, fx.Node) or start == -1 for start in starts)


COUNTED = [
    from_the_end,
    back,
    turned,
    less_the_last,
    less_their_number,
    of_a_table,
    of_the_end_of_a_table,
]


@pytest.mark.parametrize(
    ("bias", "how"),
    [*((bias, "filled") for bias in COUNTED), (back, "called"), (of_a_table, "where")],
)
def test_keys_are_counted_from_the_query(bias: Callable[[int], Tensor], how: str) -> None:
    module = Biased(bias, how)
    program = captured(module)
    settle_key_offsets(program)
    program.graph.lint()
    assert not counts_back(program)
    for length in (2, 7, 33):
        x = torch.randn(3, length, 2)
        torch.testing.assert_close(program.module()(x), module(x), atol=1e-5, rtol=1e-5)


def bent(length: int) -> Tensor:
    return BENT[:, :, -length:]


def squared(length: int) -> Tensor:
    return -SLOPES * torch.arange(1 - length, 1) * torch.arange(1 - length, 1)


@pytest.mark.parametrize(
    ("bias", "how"), [(bent, "filled"), (squared, "where"), (from_the_end, "low")]
)
def test_what_is_not_affine_or_hides_little_stays(bias: Callable[[int], Tensor], how: str) -> None:
    """A fill of -5 has a weight, which a moved row would change."""
    module = Biased(bias, how)
    program = captured(module)
    settle_key_offsets(program)
    assert counts_back(program)
    x = torch.randn(3, 9, 2)
    assert torch.equal(program.module()(x), module(x))


class Deep(nn.Module):
    """A bias of keys that comes of many residual sums, and weights of tokens without queries."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x
        for _ in range(40):
            y = y + y.sin() * y.view(x.shape)
        scores = x @ x.mT + y.mT[:, :1] / x.shape[1]
        return scores.softmax(-1), torch.softmax(torch.arange(1 - x.shape[1], 1) * 0.1, 0)


def test_data_are_followed_once_and_weights_without_queries_stay() -> None:
    program = captured(Deep())
    settle_key_offsets(program)
    x = torch.randn(3, 9, 2) / 10
    torch.testing.assert_close(program.module()(x), Deep()(x))


def test_it_is_stepped(tmp_path: Path) -> None:
    """Far enough from the first key for what is counted from there to be rounded."""
    inputs = {"x": torch.randn(2, 7, 2)}
    report = export(Biased(back, "called").eval(), tmp_path / "bundle", inputs=inputs, steps=1000)
    assert report.manifest.main.targets["ort"].parity == "passed"
