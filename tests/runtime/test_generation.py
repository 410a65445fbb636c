"""Generation: greedy and sampled tokens, stops, and rows that are independent of each other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.errors import InputError
from intaglio.runtime import token_reader
from intaglio.runtime.generation import Stop, generate, generate_rows
from intaglio.runtime.sampling import Sampling
from intaglio.runtime.session import Session

Array = npt.NDArray[Any]
MakeSession = Callable[..., Session]
MIXED = ("recurrent", "conv", "window", "static")
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def session(make_session: MakeSession) -> Session:
    return make_session(*MIXED)


def test_greedy_tokens_are_those_of_the_whole_sequence(session: Session) -> None:
    """One call over prompt and generated tokens predicts each of them."""
    found = list(generate(session, PROMPT, max_new_tokens=8))
    session.state.reset()
    logits = session.step({"input_ids": [PROMPT + found]})["logits"][0]

    assert found == logits.argmax(-1)[len(PROMPT) - 1 : -1].tolist()
    assert len(set(found)) > 1


def test_the_session_has_consumed_all_but_the_last_token(session: Session) -> None:
    """So generation goes on by feeding that token, as if it had never ended."""
    whole = list(generate(session, PROMPT, max_new_tokens=8))
    session.state.reset()
    first = list(generate(session, PROMPT, max_new_tokens=3))

    assert session.state.past_length.tolist() == [len(PROMPT) + 2]
    assert first + list(generate(session, first[-1:], max_new_tokens=5)) == whole


def test_a_long_prompt_is_consumed_in_parts(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same tokens to follow."""
    prompts = [PROMPT, PROMPT[:2], PROMPT * 3]
    whole = [row.tokens.tolist() for row in generate_rows(session, prompts, max_new_tokens=6)]
    session.state.reset()
    monkeypatch.setattr(token_reader, "PROMPT_STEP", 4)
    parts = [row.tokens.tolist() for row in generate_rows(session, prompts, max_new_tokens=6)]

    assert parts == whole


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_rows_equal_separate_runs(
    session: Session, make_session: MakeSession, options: dict[str, Any]
) -> None:
    """Prompts of unequal length, generated together, greedily or with the first row's seed."""
    prompts = [PROMPT, [7], [2, 7]]
    together = list(generate_rows(session, prompts, max_new_tokens=6, **options))
    alone = [
        list(generate(make_session(*MIXED), prompt, max_new_tokens=6, **options))
        for prompt in (prompts if not options else prompts[:1])
    ]

    for row, tokens in enumerate(alone):
        assert [int(step.tokens[row]) for step in together] == tokens


def test_a_stop_ends_a_row_and_the_others_go_on(session: Session) -> None:
    """The token that completes it is the row's last; the state stays at what was consumed."""
    prompts = [[5], PROMPT]
    free = np.array([row.tokens for row in generate_rows(session, prompts, max_new_tokens=8)])
    stop, end = int(free[1, 0]), 1
    assert stop not in free[:end, 0]
    assert stop not in free[:, 1]
    session.state.reset()
    rows = list(generate_rows(session, prompts, max_new_tokens=8, stop=[stop]))

    assert [int(row.tokens[0]) for row in rows] == [*free[: end + 1, 0].tolist(), *[-1] * 6]
    assert [int(row.tokens[1]) for row in rows] == free[:, 1].tolist()
    assert [bool(row.finished[0]) for row in rows] == [index >= end for index in range(8)]
    assert session.state.past_length.tolist() == [1 + end, len(PROMPT) + 7]


def test_generation_ends_when_every_row_has(session: Session) -> None:
    """Not at max_new_tokens."""
    rows = list(generate_rows(session, [[5], [9, 9]], max_new_tokens=8, stop=[0]))

    assert [row.finished.tolist() for row in rows] == [[False, True], [True, True]]


def test_a_stop_may_be_a_sequence(session: Session) -> None:
    """It ends generation when complete, in this order, and not before."""
    free = list(generate(session, [1], max_new_tokens=8))
    assert free[:5] == [6, 9, 0, 9, 6]
    cases: list[tuple[Stop, int]] = [
        ([[9, 0]], 3),
        ([[0, 9, 6], [9, 9]], 5),
        ([np.array([0, 9])], 4),
        ([[6, 0]], 8),
        ([[9, 6], 0], 3),
    ]
    for stop, count in cases:
        session.state.reset()
        assert list(generate(session, [1], max_new_tokens=8, stop=stop)) == free[:count]


def test_a_seed_repeats_and_another_differs(session: Session) -> None:
    """Sampling depends on the seed alone."""

    def sample(seed: int) -> list[int]:
        session.state.reset()
        return list(generate(session, PROMPT, max_new_tokens=16, temperature=2.0, seed=seed))

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_rows_draw_independently(session: Session) -> None:
    """Equal prompts go apart."""
    rows = generate_rows(session, [PROMPT] * 2, max_new_tokens=16, temperature=2.0, seed=0)
    tokens = np.array([row.tokens for row in rows])

    assert (tokens[:, 0] != tokens[:, 1]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, r"top_p is 0\.0"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"min_p": 1.5}, r"min_p is 1\.5"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0\.0"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"stop": [[]]}, "empty sequence"),
        ({"logits": "scores"}, r"no such output 'scores'.*gives logits .*, hidden "),
    ],
)
def test_options_that_mean_nothing_are_refused_at_once(
    session: Session, options: dict[str, Any], message: str
) -> None:
    """By the call itself, not by the first token."""
    with pytest.raises(InputError, match=message):
        generate(session, PROMPT, **{"max_new_tokens": 1, **options})


def test_each_row_may_draw_in_its_own_way(session: Session) -> None:
    """A greedy row beside one that draws has its tokens, and the other those of its options."""
    prompts, count = [PROMPT, PROMPT], 8
    drawn = Sampling(1.5, min_p=0.01)
    greedy = [int(row.tokens[0]) for row in generate_rows(session, prompts, max_new_tokens=count)]
    session.state.reset()
    options: dict[str, Any] = {"temperature": 1.5, "min_p": 0.01, "seed": 4}
    alike = [row.tokens for row in generate_rows(session, prompts, max_new_tokens=count, **options)]
    session.state.reset()
    mixed = [
        row.tokens
        for row in generate_rows(
            session, prompts, max_new_tokens=count, samplings=[Sampling(), drawn], seed=4
        )
    ]

    assert [int(tokens[0]) for tokens in mixed] == greedy
    assert [int(tokens[1]) for tokens in mixed] == [int(tokens[1]) for tokens in alike]
    with pytest.raises(InputError, match="1 entries for 2 rows"):
        generate_rows(session, prompts, max_new_tokens=1, samplings=[drawn])
    with pytest.raises(InputError, match="leave out top_k"):
        generate_rows(session, prompts, max_new_tokens=1, samplings=[drawn] * 2, top_k=3)


def test_a_repetition_penalty_holds_for_prompt_and_generated_tokens(session: Session) -> None:
    """Each is the likeliest after the scores of those before it were lowered."""
    free = list(generate(session, PROMPT, max_new_tokens=12))
    session.state.reset()
    found = list(generate(session, PROMPT, max_new_tokens=12, repetition_penalty=3.0))
    session.state.reset()
    logits = session.step({"input_ids": [PROMPT + found]})["logits"][0, len(PROMPT) - 1 : -1]
    for index, scores in enumerate(logits):
        held = [*{*PROMPT, *found[:index]}]
        scores[held] = np.where(scores[held] < 0, scores[held] * 3, scores[held] / 3)

    assert found == logits.argmax(-1).tolist() != free


@pytest.mark.parametrize("prompt", [[], [[1]], [0.5]])
def test_a_prompt_is_one_or_more_tokens(session: Session, prompt: Any) -> None:
    """Nothing comes of nothing."""
    with pytest.raises(InputError, match="prompt of row 0"):
        generate(session, prompt, max_new_tokens=1)


def test_no_new_tokens_consume_nothing(session: Session) -> None:
    """Zero means zero."""
    assert list(generate(session, PROMPT, max_new_tokens=0)) == []
    assert session.state.batch is None
