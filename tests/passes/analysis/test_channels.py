"""Terms of axes: what is unified is permuted alike, and what has no common form is fixed."""

import numpy as np
import pytest

from intaglio.passes.analysis.channels import (
    Channels,
    add,
    cut,
    factor,
    fixed,
    leaves,
    multiply,
    places,
    unify,
)


def free(channels: Channels) -> list[int | None]:
    return [leaf.size for leaf in leaves(channels) if not leaf.fixed]


def test_a_merged_axis_is_cut_into_the_factors_it_is_made_of() -> None:
    heads, size = Channels(4), Channels(8)
    axis = Channels(32)
    unify(axis, multiply([heads, size]))

    assert factor(axis, 4) == (heads, size)
    assert places(axis, heads)[1].tolist() == list(range(8, 16))
    assert places(axis, size)[1].tolist() == [1, 9, 17, 25]


def test_halves_that_are_permuted_alike_are_pairs() -> None:
    axis = Channels(12)
    first, second = cut(axis, [6, 6])
    unify(first, second)
    (leaf, other) = leaves(axis)

    assert leaf is other
    assert places(axis, leaf)[2].tolist() == [2, 8]


def test_heads_of_rotated_halves_keep_both() -> None:
    """A grid of heads whose rows are a sum, as queries are."""
    axis = Channels(24)
    _, row = factor(axis, 2)
    first, second = cut(row, [6, 6])
    unify(first, second)

    assert free(axis) == [2, 6, 6]
    assert places(axis, first.root)[0].tolist() == [0, 6, 12, 18]


def test_groups_refine_heads() -> None:
    """Four heads that are two groups of two, whichever is said first."""
    heads = Channels(4)
    unify(heads, multiply([Channels(2), Channels(2)]))

    assert free(heads) == [2, 2]


def test_a_grid_cut_between_its_rows_is_a_sum_of_grids() -> None:
    axis = multiply([Channels(6), Channels(4)])
    first, rest = cut(axis, [8, 16])

    assert free(first) == [2, 4]
    assert free(rest) == [4, 4]
    assert free(axis) == [2, 4, 4, 4]


def test_a_grid_cut_within_a_row_has_its_rows_fixed() -> None:
    axis = multiply([Channels(3), Channels(4)])
    cut(axis, [2, 10])

    assert 3 not in free(axis)
    assert free(axis) == [2, 2] * 3


@pytest.mark.parametrize(("sizes", "others"), [((3, 4), (4, 3)), ((2, 6), (3, 4))])
def test_grids_without_a_common_form_are_fixed(
    sizes: tuple[int, int], others: tuple[int, int]
) -> None:
    a, b = (multiply([Channels(n) for n in each]) for each in (sizes, others))
    unify(a, b)

    assert free(a) == free(b) == []


def test_what_is_fixed_once_fixes_whatever_it_is_unified_with() -> None:
    total = add([Channels(2), Channels(3)])
    unify(total, fixed(5))

    assert free(total) == []


def test_places_are_each_place_once() -> None:
    a, b, c = Channels(2), Channels(3), Channels(5)
    axis = add([multiply([a, b]), c, multiply([b, c]), b])
    found = [places(axis, leaf).reshape(-1) for leaf in (a, b, c)]

    assert axis.size == 6 + 5 + 15 + 3
    assert all(len(np.unique(each)) == len(each) for each in found)
    assert places(axis, b)[1].tolist() == [1, 4, *range(16, 21), 27]
