"""Graphs as arrays: several of them joined for one call, and what tells their nodes apart.

Edges are integers [2, edges]: the nodes that each comes from and goes to.  An undirected edge is
two of them.

Source of the encodings: Rampasek et al. 2022, arXiv:2205.12454, section 3.1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError

Array = npt.NDArray[Any]
BLOCK = 2**22  # entries of the walks that are followed at once


def join(graphs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Several graphs as the inputs of one call.

    Args:
        graphs: arrays of each graph, with the same names: `edge_index` [2, edges] of its own nodes
            from 0 on, names that start with ``edge`` along its edges, and all others along its
            nodes.

    Returns:
        The arrays of all graphs behind each other, edges between the nodes as they stand then;
        `batch` [nodes], the graph of each node, `place` [nodes], which of its nodes it is, and
        `slot_mask` [graphs, most nodes of one], whether a graph has so many.

    Raises:
        InputError: there is no graph, they differ in their names, or one is no graph.
    """
    if not graphs:
        raise InputError("There are no graphs to join; give one at least.")
    counts = np.array([_nodes(graph, index) for index, graph in enumerate(graphs)])
    for index, graph in enumerate(graphs):
        if set(graph) != set(graphs[0]):
            raise InputError(
                f"Graph {index} has {', '.join(sorted(graph))}, graph 0 "
                f"{', '.join(sorted(graphs[0]))}; all should have the same."
            )
    first = np.cumsum(counts) - counts
    joined = {
        name: np.concatenate([graph[name] for graph in graphs])
        for name in graphs[0]
        if name != "edge_index"
    }
    edges = [
        np.asarray(graph["edge_index"], np.int64) + start
        for graph, start in zip(graphs, first, strict=True)
    ]
    batch = np.repeat(np.arange(len(graphs)), counts)
    return {
        **joined,
        "edge_index": np.concatenate(edges, axis=1),
        "batch": batch,
        "place": np.arange(counts.sum()) - first[batch],
        "slot_mask": np.arange(counts.max())[None] < counts[:, None],
    }


def _nodes(graph: Mapping[str, Array], index: int) -> int:
    """How many nodes a graph has, once its arrays are known to fit together."""
    if "edge_index" not in graph:
        raise InputError(f"Graph {index} has no edge_index; give edges [2, 0] where it has none.")
    along = {name: len(x) for name, x in graph.items() if not name.startswith("edge")}
    if len(set(along.values())) != 1 or not next(iter(along.values())):
        said = ", ".join(f"{name} {count}" for name, count in along.items()) or "nothing"
        raise InputError(f"Graph {index} has nodes along {said}; it should be one count above 0.")
    nodes = next(iter(along.values()))
    edges = _edges(graph["edge_index"], nodes, f"The edge_index of graph {index}")
    for name, x in graph.items():
        if name.startswith("edge") and name != "edge_index" and len(x) != edges.shape[1]:
            raise InputError(f"Graph {index} has {edges.shape[1]} edges, and {len(x)} in {name}.")
    return nodes


def _edges(edge_index: Array, nodes: int, who: str = "edge_index") -> Array:
    edges = np.asarray(edge_index)
    if edges.ndim != 2 or len(edges) != 2 or (edges.size and edges.dtype.kind not in "iu"):
        raise InputError(
            f"{who} is {edges.dtype} {list(edges.shape)}; it should be integers [2, edges]."
        )
    outside = edges[(edges < 0) | (edges >= nodes)]
    if outside.size:
        raise InputError(f"{who} points to node {outside[0]}; there are nodes 0 to {nodes - 1}.")
    return edges.astype(np.int64)


def random_walks(edge_index: Array, nodes: int, steps: int) -> npt.NDArray[np.float32]:
    """The chance of a random walk from each node to be back after 1, 2, ... steps [nodes, steps].

    diag(P^k) with P = D^-1 A.  Memory is bounded; time grows with nodes x edges x steps.

    Raises:
        InputError: an edge points beyond the nodes.
    """
    source, target = _edges(edge_index, nodes)
    found = np.zeros((nodes, steps), np.float32)
    if not source.size:
        return found
    order = np.argsort(target, kind="stable")
    source, target = source[order], target[order]
    chance = 1.0 / np.bincount(source, minlength=nodes)[source]
    reached, starts = np.unique(target, return_index=True)
    block = max(1, BLOCK // max(nodes, source.size))
    for low in range(0, nodes, block):
        rows = np.arange(low, min(low + block, nodes))
        at = np.zeros((rows.size, nodes))
        at[rows - low, rows] = 1
        for step in range(steps):
            moved = np.add.reduceat(at[:, source] * chance, starts, axis=1)
            at = np.zeros_like(at)
            at[:, reached] = moved
            found[rows, step] = at[rows - low, rows]
    return found


def laplacian(
    edge_index: Array, nodes: int, count: int, *, normalized: bool = True
) -> npt.NDArray[np.float32]:
    """The eigenvectors of the lowest eigenvalues of the Laplacian [nodes, count, 2].

    The last axis holds the entry of the eigenvector and its eigenvalue; what a graph of fewer nodes
    lacks is no number.  Eigenvectors have length 1, and their largest entry is positive: the sign
    is free, and models are trained with either.

    Args:
        edge_index: undirected edges, each in both directions; those from a node to itself count for
            nothing.
        nodes: how many nodes there are.
        count: how many eigenvectors.
        normalized: of I - D^-1/2 A D^-1/2 rather than of D - A.

    Raises:
        InputError: an edge points beyond the nodes.
    """
    edges = _edges(edge_index, nodes)
    source, target = edges[:, edges[0] != edges[1]]
    adjacent = np.zeros((nodes, nodes))
    np.add.at(adjacent, (source, target), 1.0)
    degree = adjacent.sum(1)
    if normalized:
        scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)
        matrix = np.eye(nodes) - scale[:, None] * adjacent * scale
    else:
        matrix = np.diag(degree) - adjacent
    values, vectors = np.linalg.eigh(matrix)
    values, vectors = values[:count].clip(0), vectors[:, :count]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0)
    vectors = vectors * np.where(largest < 0, -1, 1)
    found = np.full((nodes, count, 2), np.nan, np.float32)
    found[:, : len(values), 0] = vectors
    found[:, : len(values), 1] = values
    return found
