"""Tables fold: no line is too wide, and no letter is lost."""

import random
import re

import pytest

from intaglio.cli.tables import fold, lines_of

WORDS = ("past.0.conv.q_conv1d", "[batch, 2, capacity, 32]", "float32", "a", "", "x" * 50, "12.5")


def test_what_fits_is_in_columns_numbers_to_the_right() -> None:
    rows = [["a", "1.5", "12%"], ["bcd", "12", "3%"]]

    assert [line.text for line in lines_of(["name", "ms", "share"], rows, 40)] == [
        "  name   ms  share",
        "  a     1.5    12%",
        "  bcd    12     3%",
    ]


def test_a_long_cell_goes_on_below_itself() -> None:
    rows = [["name", "one two three four five six seven", "9"]]
    lines = [line.text for line in lines_of(["a", "said", "n"], rows, 30)]

    assert lines == [
        "  a     said                 n",
        "  name  one two three four   9",
        "        five six seven",
    ]


def test_columns_that_do_not_fit_follow_below_after_the_first() -> None:
    head = ["phase", *(f"figure{i}" for i in range(5))]
    lines = list(lines_of(head, [["step", *("123456789" for _ in range(5))]], 32))

    assert [line.text.split() for line in lines if line.head] == [
        ["phase", "figure0", "figure1"],
        ["phase", "figure2", "figure3"],
        ["phase", "figure4"],
    ]
    assert all("step" in line.text for line in lines if not line.head)


@pytest.mark.parametrize("width", [40, 80, 100])
def test_no_line_is_wider_and_nothing_is_lost(width: int) -> None:
    """Of tables of words of all lengths."""
    draw = random.Random(width)
    for _ in range(200):
        columns = draw.randint(1, 9)
        rows = [[draw.choice(WORDS) for _ in range(columns)] for _ in range(draw.randint(1, 4))]
        lines = list(lines_of([f"column {i}" for i in range(columns)], rows, width))

        assert max(len(line.text) for line in lines) <= width
        shown = "".join(line.text for line in lines)
        for letter in set("".join(word for row in rows for word in row)) - {" "}:
            given = sum(row.count(letter) for row in ("".join(r) for r in rows))
            assert shown.count(letter) >= given


def test_folding_cuts_at_spaces_then_at_points_then_anywhere() -> None:
    assert fold("one two", 5) == ["one", "two"]
    assert fold("layers.0.mixer", 9) == ["layers.0.", "mixer"]
    assert fold("abcdefgh", 3) == ["abc", "def", "gh"]
    assert re.sub(" ", "", "".join(fold("a  b c", 2))) == "abc"
