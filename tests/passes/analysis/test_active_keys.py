"""Attention to the last active tokens is a queue of them, where a mask proves it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from traced import VOCABULARY, Traced, steps_exactly

from intaglio.state import Layout

WIDTH, WINDOW = 6, 2
Seen = Callable[[Tensor, Tensor], Tensor]


def counted(active: Tensor) -> tuple[Tensor, Tensor]:
    """How many tokens are active up to each: of queries, and of keys."""
    count = active.long().cumsum(1)
    return count[:, :, None], count[:, None, :]


def last(active: Tensor, other: Tensor) -> Tensor:
    del other
    query, key = counted(active)
    return active[:, None] & (query - key <= WINDOW)


def turned(active: Tensor, other: Tensor) -> Tensor:
    """The same in other words."""
    del other
    query, key = counted(active)
    return active[:, None] & ~(key < query - WINDOW)


def strict(active: Tensor, other: Tensor) -> Tensor:
    del other
    query, key = counted(active)
    return active[:, None] & (query < key + WINDOW)


class Routed(nn.Module):
    """Attention to the keys that `seen` makes of the tokens that a router activates."""

    def __init__(self, seen: Seen, fill: float = -torch.inf, *, scored: str = "softmax") -> None:
        super().__init__()
        self.seen, self.fill, self.scored = seen, fill, scored
        self.embed, self.qkv = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.route, self.out = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, VOCABULARY)
        self.near = nn.Parameter(torch.randn(400))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        q, k, v = self.qkv(x).chunk(3, -1)
        active, other = (self.route(x) > 0).unbind(-1)
        scores, place = q @ k.mT, torch.arange(x.shape[1])
        if self.scored == "near":
            scores = scores + self.near[(place[:, None] - place).clamp(min=0)]
        if self.scored == "late":
            scores = scores + 0.1 * place
        seen = self.seen(active, other) & (place <= place[:, None])
        if self.scored == "squares":
            return self._told(scores.relu().square().masked_fill(~seen, self.fill) @ v, active)
        scores = scores.masked_fill(~(seen | (place == place[:, None])), self.fill)
        scores = scores.masked_fill(place > place[:, None], -torch.inf)
        return self._told(scores.softmax(-1) @ v, active)

    def _told(self, found: Tensor, active: Tensor) -> Tensor:
        y: Tensor = self.out(found * active[..., None])
        return y


def _carried(module: Routed, traced: Traced) -> set[tuple[Layout, int | str]]:
    """Layouts and lengths of what is carried along tokens, from a graph that gives the same."""
    torch.manual_seed(0)
    context = steps_exactly(module, traced, rows=3, parts=(3, 1, 7, 12))
    return {(s.layout, s.shape[s.axis]) for s in context.states if s.axis is not None}


@pytest.mark.parametrize(
    ("seen", "length"), [(last, WINDOW + 1), (turned, WINDOW + 1), (strict, WINDOW)]
)
def test_the_last_active_tokens_are_a_queue(seen: Seen, length: int, traced: Traced) -> None:
    torch.manual_seed(1)
    assert _carried(Routed(seen), traced) == {(Layout.WINDOW, length)}


def test_so_is_attention_by_squares(traced: Traced) -> None:
    torch.manual_seed(1)
    module = Routed(last, 0.0, scored="squares")
    assert _carried(module, traced) == {(Layout.WINDOW, WINDOW + 1)}


def of_all(active: Tensor, other: Tensor) -> Tensor:
    """Keys that are not active are seen."""
    del other
    query, key = counted(active)
    return query - key <= WINDOW


def of_others(active: Tensor, other: Tensor) -> Tensor:
    """What is counted is not what is active."""
    query, key = counted(other)
    return active[:, None] & (query - key <= WINDOW)


def either(active: Tensor, other: Tensor) -> Tensor:
    """Some are seen for ever."""
    return last(active, other) | other[:, None]


def all_active(active: Tensor, other: Tensor) -> Tensor:
    del other
    return active[:, None] & (active[:, :, None] | True)


def earlier(active: Tensor, other: Tensor) -> Tensor:
    """The first ones, not the last ones."""
    del other
    query, key = counted(active)
    return active[:, None] & (key - query <= WINDOW)


@pytest.mark.parametrize("seen", [of_all, of_others, either, all_active, earlier])
def test_what_may_be_seen_later_stays_in_a_cache(seen: Seen, traced: Traced) -> None:
    torch.manual_seed(1)
    assert {layout for layout, _ in _carried(Routed(seen), traced)} == {Layout.STATIC}


@pytest.mark.parametrize(("fill", "scored"), [(-50.0, "softmax"), (-torch.inf, "near"),
                                              (-torch.inf, "late")])  # fmt: skip
def test_so_do_keys_that_weigh_something_or_have_a_place(
    fill: float, scored: str, traced: Traced
) -> None:
    torch.manual_seed(1)
    module = Routed(last, fill, scored=scored)
    assert {layout for layout, _ in _carried(module, traced)} == {Layout.STATIC}
