"""Whatever is done to a session, each row computes what its own tokens say, in order."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intaglio.runtime.session import Session

MakeSession = Callable[..., Session]
Row = list[int]

token = st.integers(0, 22)
row = st.integers(0, 7)  # taken modulo the number of rows
actions = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.lists(token, min_size=1, max_size=5)),
        st.tuples(st.just("ragged"), st.lists(st.integers(0, 4), min_size=1, max_size=4)),
        st.tuples(st.just("select"), st.lists(row, min_size=1, max_size=4)),
        st.tuples(st.just("reset"), st.lists(row, min_size=1, max_size=2)),
        st.tuples(st.sampled_from(["restore", "fork"]), st.just([0])),
    ),
    min_size=1,
    max_size=8,
)


def grid(rows: int, tokens: Row) -> npt.NDArray[np.int64]:
    """Ids [rows, time] that differ between the rows."""
    return (np.array(tokens) + 5 * np.arange(rows)[:, None]) % 23


def act(session: Session, histories: list[Row], what: str, values: Row) -> tuple[Session, Any]:
    """Do one thing to `session` and to `histories`; return the session and the outputs, if any."""
    count = len(histories)
    rows = [value % count for value in values]
    if what == "step":
        ids = grid(count, values)
        for history, tokens in zip(histories, ids.tolist(), strict=True):
            history.extend(tokens)
        return session, session.step({"input_ids": ids})
    if what == "ragged":
        lengths = [values[index % len(values)] for index in range(count)]
        ids = grid(count, list(range(4)))
        for history, tokens, length in zip(histories, ids.tolist(), lengths, strict=True):
            history.extend(tokens[:length])
        session.step({"input_ids": ids}, lengths=lengths)
    elif what == "select":
        session.state.select(rows)
        histories[:] = [list(histories[index]) for index in rows]
    elif what == "reset":
        session.state.reset(rows)
        for index in rows:
            histories[index].clear()
    elif what == "restore":
        snapshot = session.state.save()
        session.step({"input_ids": grid(count, [9, 9, 9])})
        session.state.restore(snapshot)
    else:
        twin = session.fork()
        session.step({"input_ids": grid(count, [7])})
        session = twin
    return session, None


@pytest.fixture
def two_sessions(make_session: MakeSession) -> tuple[Session, Session]:
    """One to act on, from a small cache, and one to say what is right."""
    session = make_session("recurrent", "conv", "window", "static", capacity=2)
    return session, session.fork()


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(actions=actions)
def test_rows_follow_their_own_tokens(
    two_sessions: tuple[Session, Session], actions: list[tuple[str, Row]]
) -> None:
    """Through any mix of steps, unequal lengths, selections, resets, snapshots and forks."""
    session, reference = two_sessions
    session.state.reset()
    histories: list[Row] = [[], [], []]
    for what, values in [("step", [1]), *actions, ("step", [2, 3])]:
        session, outputs = act(session, histories, what, values)

        assert session.state.past_length.tolist() == [len(history) for history in histories]
    for index, history in enumerate(histories):
        reference.state.reset()
        expected = reference.step({"input_ids": [history]})["logits"][0, -2:]
        np.testing.assert_allclose(outputs["logits"][index], expected, atol=2e-5)
