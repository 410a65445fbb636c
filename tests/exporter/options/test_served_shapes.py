"""Shapes are read the way trtexec's users type them."""

from typing import Any

import pytest

from intaglio.errors import OptionError
from intaglio.exporter.options.served_shapes import Range, ServedShapes

INPUTS: dict[str, tuple[int | str, ...]] = {
    "input_ids": ("batch", "time"),
    "image": ("batch", "time", 8),
}


def test_both_spellings_mean_the_same() -> None:
    """Three options, or min, opt and max in one."""
    three = ServedShapes.parse(
        minimum="input_ids:1x1,image:1x1x8",
        optimum="input_ids:1x16,image:1x4x8",
        maximum="input_ids:1x512,image:1x9x8",
    )
    one = ServedShapes.parse(shapes=["input_ids:1x1:1x16:1x512", "image:1x1x8:1x4x8:1x9x8"])

    assert three == one
    assert three.ranges["input_ids"] == Range(minimum=(1, 1), optimum=(1, 16), maximum=(1, 512))
    assert three.to_json()["image"] == {
        "minimum": [1, 1, 8],
        "optimum": [1, 4, 8],
        "maximum": [1, 9, 8],
    }


def test_a_name_may_hold_colons() -> None:
    """TensorFlow's names do."""
    assert list(ServedShapes.parse(optimum="ids:0:1x2").ranges) == ["ids:0"]
    assert list(ServedShapes.parse(shapes=["ids:0:1x2:1x2:1x2"]).ranges) == ["ids:0"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"optimum": "x:2x3"}, [(2, 3), (2, 3), (2, 3)]),
        ({"minimum": "x:1x1", "maximum": "x:2x9"}, [(1, 1), (2, 9), (2, 9)]),
        ({"minimum": "x:1x1", "optimum": "x:1x4"}, [(1, 1), (1, 4), (1, 4)]),
    ],
)
def test_what_is_left_out_follows_what_is_given(
    options: dict[str, str], expected: list[tuple[int, ...]]
) -> None:
    """One shape fixes all three."""
    found = ServedShapes.parse(**options).ranges["x"]

    assert [found.minimum, found.optimum, found.maximum] == expected


@pytest.mark.parametrize(
    ("shapes", "batch"),
    [
        (["input_ids:1x1:1x16:1x512"], 1),
        (["input_ids:4x1:4x16:4x512", "image:4x1x8:4x1x8:4x2x8"], 4),
        (["input_ids:1x1:2x16:4x512"], None),
        ([], None),
    ],
)
def test_a_batch_is_fixed_where_min_and_max_agree(shapes: list[str], batch: int | None) -> None:
    """Otherwise it stays free."""
    assert ServedShapes.parse(shapes=shapes).fixed_batch(INPUTS) == batch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimum": "1x1"}, "should be NAME:DIMS"),
        ({"minimum": "a:1xT"}, "'1xT' should be positive sizes"),
        ({"minimum": "a:0x1"}, "'0x1' should be positive sizes"),
        ({"minimum": "a:1x1,a:2x1"}, "'a' is given twice"),
        ({"shapes": ["a:1x1:1x2"]}, "should be NAME:MIN:OPT:MAX"),
        ({"shapes": ["a:1x1:1x2:1x3"], "optimum": "a:1x1"}, "'a' are given twice"),
        ({"minimum": "a:2x1", "maximum": "a:1x9"}, "ascend from min to opt to max: 2x1, 1x9, 1x9"),
        ({"minimum": "a:2", "maximum": "a:2x9"}, "ascend"),
    ],
)
def test_a_malformed_option_is_told(options: dict[str, Any], message: str) -> None:
    """Each fault has its own sentence."""
    with pytest.raises(OptionError, match=message):
        ServedShapes.parse(**options)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (["ids:1x1:1x1:1x1"], "name 'ids'; the source's inputs are: input_ids, image"),
        (["input_ids:1:1:1"], "should be batchxtime, not 1"),
        (["image:1x1x9:1x1x9:1x1x9"], "should be batchxtimex8, not 1x1x9"),
        (["input_ids:1x1:1x1:1x1", "image:2x1x8:2x1x8:2x1x8"], "different batches"),
    ],
)
def test_shapes_that_do_not_fit_the_source_are_told(shapes: list[str], message: str) -> None:
    """Names, ranks and fixed dimensions are held to the source's inputs."""
    with pytest.raises(OptionError, match=message):
        ServedShapes.parse(shapes=shapes).fixed_batch(INPUTS)


@pytest.mark.parametrize(
    ("shapes", "tokens"),
    [
        ({}, None),
        ({"ids": "1x1:2x16:4x512"}, 32),
        ({"ids": "3x1"}, 3),
        ({"image": "2x3x8x8"}, 2),
        ({"image": "2x3x8x8", "ids": "2x5"}, 10),
        ({"scale": "7"}, None),
    ],
)
def test_a_usual_call_has_the_tokens_of_all_rows(
    shapes: dict[str, str], tokens: int | None
) -> None:
    inputs = {"ids": ("batch", "time"), "image": ("batch", 3, "height", "width"), "scale": (7,)}
    served = ServedShapes.of(shapes)
    assert served.usual_tokens(inputs) == tokens
