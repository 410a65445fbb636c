"""Modules that append to caches of their own are taken from empty ones, at once or one by one."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import PassError, SourceError
from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.loops.roll import roll

SIZE = 4
ROWS = 2


class Attends(nn.Module):
    """Keys and values of each token; tokens of one call see each other where nothing is masked."""

    def __init__(self, *, causal: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(SIZE, SIZE) for _ in range(3))
        self.causal = causal

    def attended(self, x: Tensor, past: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        k, v = self.k(x), self.v(x)
        if past is not None:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        seen = torch.ones(x.shape[1], k.shape[1], dtype=torch.bool)
        seen = seen.tril(k.shape[1] - x.shape[1]) if self.causal else seen
        return F.scaled_dot_product_attention(self.q(x), k, v, attn_mask=seen), (k, v)


class Given(Attends):
    def forward(self, x: Tensor, past: tuple[Tensor, Tensor]) -> Any:
        return self.attended(x, past)


class LeftOut(Attends):
    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None = None) -> Any:
        return self.attended(x, past)


class Kept(Attends):
    past: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        y, self.past = self.attended(x, self.past)
        return y


class Cell(nn.Module):
    """A cell's state, and all that it was before; what it sees is at a place that Python counts."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.table = nn.Linear(SIZE, SIZE), nn.Embedding(30, SIZE)

    def forward(self, x: Tensor, h: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.tanh(self.cell(x + self.table(torch.tensor([memory.shape[1]]))) + h)
        memory = torch.cat([memory, h[:, None]], 1)
        weights = (memory @ h[..., None]).softmax(1)
        return (weights * memory).sum(1), h, memory


def past(entries: int) -> tuple[Tensor, Tensor]:
    return torch.randn(ROWS, entries, SIZE), torch.randn(ROWS, entries, SIZE)


def source_of(module: nn.Module, **inputs: Any) -> Source:
    torch.manual_seed(0)
    return load_source(module, inputs=inputs)


def one_by_one(module: Attends, x: Tensor) -> Tensor:
    carried, found = None, []
    for t in range(x.shape[1]):
        y, carried = module.attended(x[:, t : t + 1], carried)
        found.append(y)
    return torch.cat(found, 1)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Given, {"past": past(3)}),
        (Given, {"past": past(0)}),
        (LeftOut, {}),
        (LeftOut, {"past": past(3)}),
        (Kept, {}),
    ],
    ids=["given", "given empty", "left out", "not left out", "kept"],
)
@pytest.mark.parametrize("tokens", [1, 3])
def test_tokens_at_once_are_what_they_are_one_by_one(kind: Any, given: Any, tokens: int) -> None:
    """The module then is what any other is, without the caches; it stays what it was to others."""
    module = kind()
    source = source_of(module, x=torch.randn(ROWS, tokens, SIZE), **given)
    x = torch.randn(3, 6, SIZE)

    assert source.dynamic == {"x": {0: "batch", 1: "time"}}
    assert not source.states
    found = source.module(x=x)
    assert len(found) == 1
    torch.testing.assert_close(next(iter(found.values())), one_by_one(module, x))
    torch.testing.assert_close(next(iter(source.module(x=x).values())), one_by_one(module, x))
    assert not any("one token after the other" in note for note in source.notes)
    assert getattr(module, "past", None) is None


@pytest.mark.parametrize("kind", [Given, Kept])
def test_without_a_mask_it_is_called_for_one_token_after_the_other(kind: Any) -> None:
    module = kind(causal=False)
    given = {"past": past(3)} if kind is Given else {}
    source = source_of(module, x=torch.randn(ROWS, 1, SIZE), **given)
    x = torch.randn(3, 6, SIZE)

    torch.testing.assert_close(next(iter(source.module(x=x).values())), one_by_one(module, x))
    assert "The model is called for one token after the other." in source.notes[-1]


def test_tokens_of_one_call_that_see_each_other_are_left_together() -> None:
    """What such a call gives is its own; given caches stay inputs, kept ones are refused."""
    x = torch.randn(ROWS, 3, SIZE)
    source = source_of(Given(causal=False), x=x, past=past(3))

    assert [*source.dynamic] == ["x", "past_0", "past_1"]
    assert any("as a cache does" in note for note in source.notes)
    with pytest.raises(SourceError, match=r"keeps self\.past, which each call makes longer"):
        source_of(Kept(causal=False), x=x)


class Near(Attends):
    """Drops what is long ago, once a call has ended."""

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor]) -> Any:
        y, (k, v) = self.attended(x, past)
        return y, (k[:, -17:], v[:, -17:])


def test_what_differs_after_many_tokens_alone_is_seen() -> None:
    source = source_of(Near(), x=torch.randn(ROWS, 1, SIZE), past=past(3))

    assert "The model is called for one token after the other." in source.notes[-1]


class Grows(nn.Module):
    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return c.sum(-1, keepdim=True), torch.cat([x, c], 1)


def test_a_state_by_its_name_alone_is_a_cache() -> None:
    """Two inputs that are joined are no more than that; a mask over the cache goes with it."""
    x, c = torch.randn(ROWS, 3, SIZE), torch.randn(ROWS, 2, SIZE)

    assert [*source_of(Grows(), x=x, c=c).dynamic] == ["x", "c"]


class Masked(Attends):
    def forward(self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor]) -> Any:
        y, past = self.attended(x, past)
        return y * mask.sum(1)[:, None, None], past


def test_a_mask_over_the_cache_goes_on_with_it() -> None:
    module = Masked()
    mask = (torch.arange(6) % 3 > 0).float().expand(3, -1)
    source = source_of(module, x=torch.randn(ROWS, 1, SIZE), mask=torch.ones(ROWS, 4), past=past(3))
    x = torch.randn(3, 6, SIZE)

    (found,) = source.module(x=x, mask=mask).values()
    torch.testing.assert_close(found, one_by_one(module, x) * mask.cumsum(1)[..., None])


def test_a_cell_beside_a_cache_is_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state starts from what was asked; positions are told by the cache's length."""
    monkeypatch.setattr(sys.modules[roll.__module__], "FAR", (29,))
    inputs = {
        "x": torch.randn(ROWS, SIZE),
        "h": torch.zeros(ROWS, SIZE),
        "memory": torch.randn(ROWS, 3, SIZE),
    }
    states = {"h": "output_1:0.5", "memory": "output_2"}
    module = Cell()
    source = load_source(module, inputs=inputs, states=states)
    program = roll(source)
    x, found = torch.randn(3, 11, SIZE), []
    h, memory = torch.full((3, SIZE), 0.5), torch.zeros(3, 0, SIZE)
    for t in range(11):
        y, h, memory = module(x[:, t], h, memory)
        found.append(y)

    assert program is not None
    torch.testing.assert_close(program.module()(x=x), (torch.stack(found, 1),))


class Padded(Attends):
    """Rows without any key have all of them."""

    def forward(self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor]) -> Any:
        k, v = torch.cat([past[0], self.k(x)], 1), torch.cat([past[1], self.v(x)], 1)
        seen = torch.ones(x.shape[1], k.shape[1]).tril(k.shape[1] - x.shape[1]) * mask[:, None]
        scores = (self.q(x) @ k.mT).masked_fill(seen == 0, -1e9)
        return scores.softmax(-1) @ v, (k, v)


def test_a_refusal_tells_of_the_caches_too(tmp_path: Path) -> None:
    inputs = {"x": torch.randn(ROWS, 1, SIZE), "mask": torch.ones(ROWS, 4), "past": past(3)}
    with pytest.raises(PassError, match="as a cache does"):
        export(Padded(), tmp_path / "bundle", inputs=inputs)
