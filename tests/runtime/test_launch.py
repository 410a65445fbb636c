"""Launch plans: sizes follow from shapes, and survive JSON."""

import json

import pytest

from intaglio.runtime.launch import (
    OPERATIONS,
    Buffer,
    Expression,
    Launch,
    LaunchPlan,
    Output,
    Variant,
    ceil_div,
    dim,
    evaluate,
    less,
    product,
)

SHAPES = [(3, 70, 8), None, (3, 4, 16, 16)]


@pytest.mark.parametrize(
    ("size", "value"),
    [
        (7, 7),
        (dim(0, 1), 70),
        (dim(0, 1) + dim(2, 1), 74),
        (dim(0, 1) - 1, 69),
        (dim(0, 1) * 2, 140),
        (dim(0, 1) // 32, 2),
        (ceil_div(dim(0, 1), 32), 3),
        (ceil_div(70, 32), 3),
        (less(dim(0, 0), 4), 1),
        (less(dim(0, 1), 4), 0),
        (product([4, dim(0, 0), dim(0, 1), 2]), 1680),
        (product([2, 3]), 6),
        (product([]), 1),
        (Expression("max", (dim(0, 1), 100)), 100),
        (Expression("min", (dim(0, 1), 100)), 70),
    ],
)
def test_a_size_follows_from_the_shapes(size: int | Expression, value: int) -> None:
    """Every operation, on constants and on dimensions."""
    assert evaluate(size, SHAPES) == value


def test_a_product_of_one_dimension_is_that_dimension() -> None:
    """No multiplication by 1 is left for a device to do."""
    assert product([dim(0, 1), 1]) == dim(0, 1)


def test_operations_have_the_names_of_tensorrt() -> None:
    """A plan becomes expressions of TensorRT by name."""
    trt = pytest.importorskip("tensorrt_rtx")

    assert {name.upper() for name in OPERATIONS} <= set(trt.DimensionOperation.__members__)


def plan() -> LaunchPlan:
    launch = Launch(
        code="walk_0",
        entry="walk",
        arguments=(Buffer("input", 0), dim(0, 1), Buffer("scratch", 0), Buffer("output", 1)),
        grid=(ceil_div(dim(0, 1), 32), 4, dim(0, 0)),
        threads=128,
        shared=1024,
    )
    return LaunchPlan(
        inputs=("float16", None, "float32"),
        outputs=(Output(dtype="float16", shape=(dim(0, 0), 5)),),
        variants=(
            Variant(when=less(dim(0, 1), 17), launches=(launch,)),
            Variant(when=None, launches=(launch, launch), scratch=(dim(0, 1) * 4,)),
        ),
    )


def test_a_plan_survives_json() -> None:
    """What an engine carries is what was compiled."""
    assert LaunchPlan.from_json(json.loads(json.dumps(plan().to_json()))) == plan()


def test_the_first_variant_that_fits_is_taken() -> None:
    """Steps one way, prefill another."""
    made = plan()

    assert made.variant([(1, 16, 8), None, (1, 4, 16, 16)]) is made.variants[0]
    assert made.variant([(1, 17, 8), None, (1, 4, 16, 16)]) is made.variants[1]
