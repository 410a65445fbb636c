"""What a module says of a part of itself that runs over conditions alone."""

import pytest

from intaglio.exporter.sources.given_once import is_of_conditions_alone, of_conditions_alone


def test_it_is_said_while_that_part_runs_and_no_longer_where_it_fails() -> None:
    assert not is_of_conditions_alone()
    with of_conditions_alone():
        assert is_of_conditions_alone()
    with pytest.raises(ZeroDivisionError), of_conditions_alone():
        _ = 1 / 0
    assert not is_of_conditions_alone()
