"""Graphs as arrays: joined, and their nodes told apart by walks and by the Laplacian."""

import numpy as np
import pytest

from intaglio.errors import InputError
from intaglio.runtime import graph_batches
from intaglio.runtime.graph_batches import join, laplacian, random_walks


def ring(*sizes: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Rings of these sizes, in both directions."""
    pairs, first = [], 0
    for size in sizes:
        pairs += [(first + i, first + (i + 1) % size) for i in range(size)]
        first += size
    return np.array(pairs + [(j, i) for i, j in pairs]).T


def test_walks_tell_a_hexagon_from_two_triangles() -> None:
    """After three steps: never back on the one, one time in four on the other."""
    hexagon, triangles = random_walks(ring(6), 6, 4), random_walks(ring(3, 3), 6, 4)

    np.testing.assert_allclose(hexagon[:, 2], 0)
    np.testing.assert_allclose(triangles[:, 2], 0.25)


def test_walks_are_the_diagonals_of_powers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of nodes, nodes without edges and edges from a node to itself included."""
    rng = np.random.default_rng(0)
    edges = rng.integers(0, 9, (2, 20))
    matrix = np.zeros((11, 11))
    np.add.at(matrix, (edges[0], edges[1]), 1)
    matrix /= np.maximum(matrix.sum(1, keepdims=True), 1)
    wanted = np.array([np.diag(np.linalg.matrix_power(matrix, k)) for k in range(1, 6)]).T
    for block in (1, 60, 10**6):
        monkeypatch.setattr(graph_batches, "BLOCK", block)
        np.testing.assert_allclose(random_walks(edges, 11, 5), wanted, atol=1e-6)
    assert not random_walks(np.zeros((2, 0), np.int64), 3, 2).any()


@pytest.mark.parametrize("normalized", [True, False])
def test_eigenvectors_are_those_of_the_laplacian(normalized: bool) -> None:
    """L v = lambda v, of length 1; what a small graph lacks is no number."""
    edges = np.hstack((ring(5), [[0, 2, 1], [2, 0, 1]]))
    found = laplacian(edges, 6, 8, normalized=normalized).astype(np.float64)
    adjacent = np.zeros((6, 6))
    np.add.at(adjacent, (edges[0], edges[1]), 1)
    np.fill_diagonal(adjacent, 0)
    degree = adjacent.sum(1)
    matrix = np.diag(degree) - adjacent
    if normalized:
        scale = 1 / np.sqrt(np.where(degree > 0, degree, 1))
        matrix = np.eye(6) - scale[:, None] * adjacent * scale
    for index in range(6):
        vector, value = found[:, index, 0], found[0, index, 1]
        np.testing.assert_allclose(matrix @ vector, value * vector, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-5)
    assert np.isnan(found[:, 6:]).all()


def test_graphs_are_joined_behind_each_other() -> None:
    graphs = [
        {"x": np.array([1, 2]), "edge_index": np.array([[0], [1]]), "edge_attr": np.array([5])},
        {"x": np.array([3]), "edge_index": np.zeros((2, 0), int), "edge_attr": np.zeros(0, int)},
        {"x": np.array([4, 5]), "edge_index": np.array([[1], [0]]), "edge_attr": np.array([6])},
    ]
    found = join(graphs)

    assert found["x"].tolist() == [1, 2, 3, 4, 5]
    assert found["edge_index"].tolist() == [[0, 4], [1, 3]]
    assert found["edge_attr"].tolist() == [5, 6]
    assert found["batch"].tolist() == [0, 0, 1, 2, 2]
    assert found["place"].tolist() == [0, 1, 0, 0, 1]
    assert found["slot_mask"].tolist() == [[True, True], [True, False], [True, True]]


def test_what_is_no_graph_is_told() -> None:
    x, edges = np.zeros(3, np.int64), np.array([[0], [3]])
    with pytest.raises(InputError, match=r"The edge_index of graph 0 points to node 3; .* 0 to 2"):
        join([{"x": x, "edge_index": edges}])
    with pytest.raises(InputError, match="edge_index points to node -1; there are nodes 0 to 2"):
        random_walks(np.array([[-1], [0]]), 3, 2)
    with pytest.raises(InputError, match=r"edge_index is int64 \[1, 2\]; .* integers \[2, edges\]"):
        laplacian(edges.T, 5, 2)
    with pytest.raises(InputError, match="Graph 0 has 1 edges, and 2 in edge_attr"):
        join([{"x": x, "edge_index": edges % 3, "edge_attr": np.zeros(2)}])
    with pytest.raises(InputError, match="Graph 0 has nodes along x 3, encoding 4"):
        join([{"x": x, "edge_index": edges % 3, "encoding": np.zeros((4, 2))}])
    with pytest.raises(InputError, match="Graph 0 has no edge_index"):
        join([{"x": x}])
    with pytest.raises(InputError, match=r"Graph 1 has edge_index, x, graph 0 .*encoding"):
        join([{"x": x, "edge_index": edges % 3, "encoding": x}, {"x": x, "edge_index": edges % 3}])
    with pytest.raises(InputError, match="no graphs to join"):
        join([])
