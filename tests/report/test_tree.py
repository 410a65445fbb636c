"""Module paths as a tree: times add up, and chains of modules join."""

import pytest

from intaglio.report.tree import Branch, tree


def shape(branch: Branch) -> dict[str, object]:
    return {child.name: shape(child) for child in branch.ordered()}


def test_times_add_up_along_paths() -> None:
    root = tree([("layers.0.mlp", 3.0), ("layers.0", 1.0), ("layers.1.mlp", 2.0), ("", 0.5)])

    assert (root.total, root.own) == (6.5, 0.5)
    assert root.children["layers"].total == 6.0
    assert root.children["layers"].children["0"].total == 4.0


def test_numbered_modules_keep_their_order_and_others_go_by_time() -> None:
    """Ten layers are not sorted as texts."""
    times = [(f"layers.{i}.{name}", i + 1.0) for i in range(11) for name in ("mlp", "attn")]
    root = tree([*times, ("layers.0.attn.q_proj", 9.0), ("head", 1.0), ("embed", 2.0)])

    assert list(shape(root)) == ["layers", "embed", "head"]
    assert [child.name for child in root.children["layers"].ordered()] == [
        str(i) for i in range(11)
    ]
    assert [child.name for child in root.children["layers"].children["0"].ordered()] == [
        "attn",
        "mlp",
    ]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([("a.b.c", 1.0)], {"a.b.c": {}}),
        ([("a.b.c", 1.0), ("a.b.d", 0.5)], {"a.b": {"c": {}, "d": {}}}),
        ([("a.b.c", 1.0), ("a.b", 0.5)], {"a.b": {"c": {}}}),
    ],
)
def test_a_module_that_only_holds_one_joins_with_it(
    times: list[tuple[str, float]], expected: dict[str, object]
) -> None:
    assert shape(tree(times)) == expected
