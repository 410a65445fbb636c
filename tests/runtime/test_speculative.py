"""Speculative decoding gives what the model alone gives, and leaves the states where that does."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.errors import InputError, StateError
from intaglio.runtime.generation import generate, generate_rows
from intaglio.runtime.sampling import Sampling
from intaglio.runtime.session import Session
from intaglio.runtime.speculative import Draft

Array = npt.NDArray[Any]
MakeSession = Callable[..., Session]
FIXED = ("recurrent", "conv", "window")
PROMPT = [3, 1, 4, 1, 5]
PROMPTS = {1: [PROMPT], 3: [PROMPT, [7], [2, 7]]}


def tokens(session: Session, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """What each row gets."""
    rows: list[list[int]] = [[] for _ in prompts]
    for step in generate_rows(session, prompts, **options):
        for made, token in zip(rows, step.tokens.tolist(), strict=True):
            made.extend([token] if token >= 0 else [])
    return rows


def ends(row: list[int], token: int) -> int:
    """Where a row would end if `token` were a stop."""
    return row.index(token) if token in row else len(row)


def values(session: Session, row: int) -> dict[str, Array]:
    """The states of a row: what a cache holds beyond its tokens is nobody's."""
    other = session.fork()
    other.state.select([row])
    return {name: array[0] for name, array in other.state.save().arrays.items()}


def bent(session: Session, times: float, astray: int = 0) -> Session:
    """A copy of a model with other scores, and others altogether in each call of so many."""
    other = session.fork()
    step, calls = other.step, iter(range(10**6))

    def other_step(*given: Any, **options: Any) -> dict[str, Array]:
        found = step(*given, **options)
        found["logits"] *= times
        if astray and next(calls) % astray == astray - 1:
            found["logits"] = np.roll(found["logits"], 1, -1)
        return found

    other.step = other_step  # type: ignore[method-assign]
    return other


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("draft", [("static",), ("recurrent", "static")])
@pytest.mark.parametrize("layouts", [("static",), FIXED, (*FIXED, "static")])
def test_greedy_tokens_are_those_of_the_model_alone(
    make_session: MakeSession, layouts: tuple[str, ...], draft: tuple[str, ...], rows: int
) -> None:
    """With a stranger's draft; states are left as plain generation leaves them."""
    plain = make_session(*layouts, capacity=4)
    session = plain.fork()
    small = Draft(make_session(*draft, seed=5, capacity=4), tokens=3)
    expected = tokens(plain, PROMPTS[rows], max_new_tokens=11)
    found = tokens(session, PROMPTS[rows], max_new_tokens=11, draft=small)

    assert found == expected
    assert small.accepted < small.proposed
    for each in (session, small.session):
        assert (each.state.past_length == plain.state.past_length).all()
    for row in range(rows):
        kept, meant = values(session, row), values(plain, row)
        for name, array in meant.items():
            np.testing.assert_allclose(kept[name], array, atol=1e-5)
    last = [[row[-1]] for row in found]
    assert tokens(session, last, max_new_tokens=5, draft=small) == tokens(
        plain, last, max_new_tokens=5
    )


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("layouts", [("grow",), ("recurrent", "grow")])
def test_rows_that_must_be_alike_go_on_together(
    make_session: MakeSession, layouts: tuple[str, ...], rows: int
) -> None:
    """A cache of the layout grow holds the same number of tokens for each row."""
    plain = make_session(*layouts)
    draft = Draft(bent(plain, 0.5, astray=3), tokens=3)
    prompts = [PROMPT, PROMPT[::-1]][:rows]
    session = plain.fork()
    found = tokens(session, prompts, max_new_tokens=12, draft=draft)

    assert found == tokens(plain, prompts, max_new_tokens=12)
    assert 0 < draft.accepted < draft.proposed
    assert (session.state.past_length == plain.state.past_length).all()


@pytest.mark.parametrize("layouts", [("static",), (*FIXED, "static"), ("grow",)])
def test_rows_accept_different_numbers(make_session: MakeSession, layouts: tuple[str, ...]) -> None:
    """A draft that is right most of the time takes fewer steps, and changes no token."""
    plain = make_session(*layouts)
    draft = Draft(bent(plain, 0.5, astray=3))
    prompts = [PROMPT] if layouts == ("grow",) else PROMPTS[3]
    found = tokens(plain.fork(), prompts, max_new_tokens=16, draft=draft)

    assert found == tokens(plain, prompts, max_new_tokens=16)
    assert draft.acceptance is not None
    assert 0 < draft.acceptance < 1
    assert draft.calls < 15


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 1, "top_k": 5}])
@pytest.mark.parametrize("layouts", [("static",), (*FIXED, "static"), ("grow",)])
def test_a_model_accepts_all_that_it_drafts_itself(
    make_session: MakeSession, layouts: tuple[str, ...], options: dict[str, Any]
) -> None:
    """Five tokens a step of four drafted ones."""
    session = make_session(*layouts)
    draft = Draft(session.fork(), tokens=4)
    found = list(generate(session, PROMPT, max_new_tokens=16, draft=draft, **options))

    assert (draft.proposed, draft.accepted, draft.calls) == (12, 12, 3)
    assert len(found) == 16


@pytest.mark.parametrize("layouts", [("static",), ("recurrent", "static")])
def test_drawn_tokens_follow_the_distribution_of_the_model(
    make_session: MakeSession, layouts: tuple[str, ...]
) -> None:
    """All sequences of four tokens, by chi-square, 15 degrees of freedom: 44 is one in 10 000.

    The draft is far too sure of its first choice, which is accepted no more often for that.
    """
    options: dict[str, Any] = {"temperature": 1.0, "top_k": 2, "repetition_penalty": 1.3}
    how, count, rounds = Sampling(**options), 300, 3
    session = make_session(*layouts)
    small = bent(session, 50.0)
    exact: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(4):
        longer = {}
        for made, chance in exact.items():
            text = [*PROMPT, *made]
            session.state.reset()
            scores = session.step({"input_ids": [text]})["logits"][0, -1]
            for token, p in enumerate(how.probabilities(scores, set(text))):
                if p:
                    longer[*made, token] = chance * p
        exact = longer
    found: Counter[tuple[int, ...]] = Counter()
    draft = Draft(small, tokens=3)
    for seed in range(rounds):
        session.state.reset()
        small.state.reset()
        rows = tokens(
            session, [PROMPT] * count, max_new_tokens=4, draft=draft, seed=seed, **options
        )
        found.update(map(tuple, rows))

    assert 0 < draft.accepted < draft.proposed
    assert found.keys() <= exact.keys()
    meant = {made: chance * count * rounds for made, chance in exact.items()}
    assert sum((found[made] - n) ** 2 / n for made, n in meant.items()) < 44


def test_a_stop_within_a_block_ends_the_row_there(make_session: MakeSession) -> None:
    """Tokens beyond it are taken back, and the other rows go on."""
    plain = make_session(*FIXED, "static")
    free = tokens(plain.fork(), PROMPTS[3], max_new_tokens=8)
    stop = [next(token for token in range(23) if len({ends(row, token) for row in free}) > 1)]
    expected = plain.fork()
    session = plain.fork()
    draft = Draft(plain.fork(), tokens=5)
    steps = list(generate_rows(session, PROMPTS[3], max_new_tokens=8, stop=stop, draft=draft))
    alone = tokens(expected, PROMPTS[3], max_new_tokens=8, stop=stop)

    rows = [[int(s.tokens[row]) for s in steps if s.tokens[row] >= 0] for row in range(3)]
    assert rows == alone
    assert len({len(row) for row in rows}) > 1
    assert steps[-1].finished.tolist() == [row[-1] in stop for row in rows]
    assert (session.state.past_length == expected.state.past_length).all()


@pytest.mark.parametrize("layouts", [("static",), FIXED])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_whoever_stops_asking_finds_the_state_behind_the_last_token(
    make_session: MakeSession, layouts: tuple[str, ...], count: int
) -> None:
    """Though a step had gone further: all but the last token that came is consumed."""
    session = make_session(*layouts)
    draft = Draft(session.fork())
    whole = list(generate(session.fork(), PROMPT, max_new_tokens=9))
    asked = generate(session, PROMPT, max_new_tokens=9, draft=draft)
    first = [next(asked) for _ in range(count)]
    asked.close()  # type: ignore[attr-defined]

    for each in (session, draft.session):
        assert each.state.past_length.tolist() == [len(PROMPT) + count - 1]
    rest = generate(session, first[-1:], max_new_tokens=9 - count, draft=draft)
    assert first + list(rest) == whole


@pytest.mark.parametrize("most", [(12, 12), (12, 8), (8, 12)])
def test_a_full_session_or_draft_is_no_reason_to_fail_early(
    make_session: MakeSession, most: tuple[int, int]
) -> None:
    """The tokens that plain generation reaches are reached; a draft that is full proposes none."""
    session, small = (
        make_session("static", capacity=room, grow=False, seed=seed)
        for seed, room in enumerate(most)
    )
    plain, draft = session.fork(), Draft(small)
    last = most[0] - len(PROMPT) + 1
    expected = list(generate(plain, PROMPT, max_new_tokens=last))
    asked = generate(session, PROMPT, max_new_tokens=99, draft=draft)

    assert [next(asked) for _ in range(last)] == expected
    with pytest.raises(StateError, match=r"capacity"):
        next(asked)


def test_what_cannot_draft_is_refused_at_once(make_session: MakeSession) -> None:
    """By the call itself, not by the first token."""
    session = make_session("static")
    other = make_session("static", seed=1)

    def begin(draft: Session, count: int = 4) -> None:
        generate(session, PROMPT, max_new_tokens=1, draft=Draft(draft, count))

    with pytest.raises(InputError, match="should be 1 to 64"):
        begin(other, 0)
    with pytest.raises(InputError, match="session of its own"):
        begin(session)
    other.step({"input_ids": [[1], [2]]})
    with pytest.raises(InputError, match="draft holds 2 rows, and 1"):
        begin(other)
    outputs = (replace(other.entry.outputs[0], shape=("batch", "time", 24)),)
    other.entry = replace(other.entry, outputs=outputs)
    with pytest.raises(InputError, match="vocabulary of 24 tokens, the model one of 23"):
        begin(other)
