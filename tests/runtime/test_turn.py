"""A turn ends with the call that took it, however that ends."""

import threading

import pytest

from intaglio.runtime.turn import Turn


def test_a_call_has_the_turn_until_it_gives_it_back() -> None:
    turn = Turn()
    found: list[bool] = []

    def other() -> None:
        found.append(turn.take())
        turn.give()

    assert turn.take()
    for _ in range(2):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        turn.give()
    assert found == [False, True]


def test_the_turn_of_a_call_that_was_interrupted_is_free() -> None:
    """A signal that comes after a turn was taken, and before anything could give it back."""
    turn = Turn()

    def interrupted() -> None:
        assert turn.take()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert turn.take()


def test_a_call_within_the_one_that_has_the_turn_is_refused() -> None:
    """As of a signal handler that steps the session that it interrupted."""
    turn = Turn()

    def handler() -> bool:
        return turn.take()

    assert turn.take()
    assert not handler()
