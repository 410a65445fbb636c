"""Which input and output have names that pair up as one state."""

import pytest

from intaglio.exporter.sources.own_states.paired_names import pair, says_state


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("h", "hn"),
        ("h", "h"),
        ("h_0", "h_n"),
        ("hx", "hy"),
        ("h_in", "h_out"),
        ("c_in", "c"),
        ("state", "stateN"),
        ("state", "new_state"),
        ("cache_in", "cache_out"),
        ("in_cache0", "out_cache0"),
        ("prev_hidden", "next_hidden"),
        ("past_key_values.0.key", "present.0.key"),
        ("past_0", "present_0"),
        ("past", "present"),
    ],
)
def test_names_pair_up(before: str, after: str) -> None:
    assert pair(["x", before], [["y"], [after]]) == {before: 1}


@pytest.mark.parametrize(
    ("before", "after"),
    [("input", "output"), ("image_in", "image_out"), ("mask", "mask"), ("x", "y"), ("h", "c")],
)
def test_names_that_do_not_say_a_state(before: str, after: str) -> None:
    """An image that goes in and comes out is none, nor is a mask that is handed through."""
    assert pair(["other", before], [[after], ["score"]]) == {}


def test_two_outputs_or_two_inputs_of_one_name_are_not_told_apart() -> None:
    assert pair(["x", "h"], [["h_out"], ["h_n"]]) == {}
    assert pair(["h", "h_in"], [["y"], ["h_out"]]) == {}


def test_layers_are_told_apart_by_their_numbers() -> None:
    found = pair(["x", "h_1", "h_2"], [["y"], ["h_2_out"], ["h_1_out"]])
    assert found == {"h_1": 2, "h_2": 1}
    assert says_state("encoder.lstm_c0")
    assert not says_state("pixel_values")
