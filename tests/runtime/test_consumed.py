"""A text that begins as the last one goes on from there, bit for bit as one that began anew."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from intaglio.runtime.consumed import Consumed
from intaglio.runtime.generation import generate
from intaglio.runtime.session import Session

MakeSession = Callable[..., Session]
FIXED = ("recurrent", "conv", "window")
FIRST = [3, 1, 4, 1, 5]


def turn(consumed: Consumed, ids: list[int], **how: Any) -> tuple[int, list[int]]:
    """How many tokens the session had of `ids`, and what follows them."""
    made = list(consumed.generate(ids, max_new_tokens=4, **how))
    return consumed.kept, made


@pytest.mark.parametrize("layouts", [("static",), ("grow",), FIXED, (*FIXED, "static")])
def test_a_turn_goes_on_where_the_last_one_is_still_true(
    make_session: MakeSession, layouts: tuple[str, ...]
) -> None:
    """After the whole answer, after a part of it, after none of the prompt, and with less."""
    session = make_session(*layouts, capacity=4)
    caches = session.state.carried.only_caches
    consumed = Consumed(session)
    how: Any = {"repetition_penalty": 1.3}
    _, made = turn(consumed, FIRST, **how)
    told = [*FIRST, *made]
    other = (made[1] + 1) % 23
    for ids, within in (
        ([*told, 2, 6], (len(told) - 1,) * 2),
        ([*told, 2, 7], (len(told) + 1, 0)),  # its last token is another one
        ([*told, 2, 7, 8], (len(told) + 2, len(told) + 2)),
        ([*FIRST, made[0], other, 9], (len(FIRST) + 1, 0)),
        ([7, 1, 2], (0, 0)),
        ([7, 1], (1, 0)),
        ([7, 1], (1, 0)),
    ):
        same, found = turn(consumed, ids, **how)
        alone = session.fork()
        alone.state.reset()
        expected = list(generate(alone, ids, max_new_tokens=4, **how))

        assert found == expected
        assert same == within[not caches]
        saved = (each.state.save().arrays.values() for each in (session, alone))
        for state, wanted in zip(*saved, strict=True):
            np.testing.assert_allclose(state, wanted, atol=1e-6)


def test_the_end_of_a_prompt_is_where_states_of_fixed_shape_go_back_to(
    make_session: MakeSession,
) -> None:
    """As where an answer is written otherwise than it was drawn."""
    session = make_session(*FIXED)
    consumed = Consumed(session)
    _, made = turn(consumed, FIRST)
    ids = [*FIRST, (made[0] + 1) % 23, 2]

    assert turn(consumed, ids)[0] == len(FIRST)
    assert turn(consumed, ids)[0] == 0  # the last token of a prompt is always given


def test_an_answer_that_is_broken_off_is_gone_on_from(make_session: MakeSession) -> None:
    """As by a text that ends it: the session has consumed all tokens but the last."""
    consumed = Consumed(make_session("static"))
    answer = consumed.generate(FIRST, max_new_tokens=9)
    made = [next(answer), next(answer)]
    answer.close()  # type: ignore[attr-defined]

    assert turn(consumed, [*FIRST, *made, 5])[0] == len(FIRST) + 1
