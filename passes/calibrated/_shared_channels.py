"""Parts of a transformer whose two matrices share channels, and how each loses some of them.

Lin et al. 2024, arXiv:2408.09632: Nystrom, CR and SVD; see `modegpt.py` for the equations.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.passes.analysis.pairs_of_matrices import (
    FeedForwardPair,
    HeadProjection,
    HeadsOut,
    SharedChannelsError,
    feed_forwards,
    heads_of,
    heads_out,
)
from intaglio.passes.analysis.projections import projections
from intaglio.passes.graph import attribute, module_of

from ._moments import Wanted
from ._narrow import (
    Ledger,
    narrow_feed_forward,
    narrow_scores,
    narrow_values,
    vector_of,
    weight_of,
)
from ._tasks import Task, solved

Array = npt.NDArray[Any]

MLP, SCORES, VALUES = "mlp", "qk", "vo"
DATA, MAGNITUDE = "data", "magnitude"
JITTER = 1e-8  # of the mean of a diagonal, so that what data says nothing of can be solved for
FEW = 1e-3  # the same where there are fewer tokens than channels
UNKNOWN = 1e-12  # of the largest eigenvalue: less is rounding, of what data says nothing of


@dataclass(frozen=True, kw_only=True)
class How:
    """By what channels are chosen, and the ridge of leverage scores."""

    by: str = DATA
    ridge: float = 1e-2


@dataclass(frozen=True, kw_only=True)
class Part:
    """Two matrices that share `channels` each of `heads`, and what gives them fewer.

    `task` is what has to be solved for a width, by its moments; `shrink` puts the solution into the
    graph and returns the error that it makes.  `unit` channels stay or go together; `parameters` of
    a channel are those of all `weights`.
    """

    kind: str
    path: str
    channels: int
    heads: int
    unit: int
    parameters: int
    weights: tuple[ir.Value, ...]
    wanted: tuple[Wanted, ...]
    task: Callable[[int, Mapping[str, Array]], Task]
    shrink: Callable[[Any, Ledger], float]


def parts_of(model: ir.Model, left: dict[str, str], how: How) -> list[Part]:
    found = {each.node.outputs[0]: each for each in projections(model.graph)}
    parts = []
    for each in feed_forwards(model.graph):
        if isinstance(each, FeedForwardPair):
            parts.append(_of_feed_forward(each, how))
        else:
            left[each[0]] = each[1]
    for node in list(model.graph):
        if node.op_type != "Attention" or node.domain:
            continue
        path = module_of(node)
        try:
            query, key = (heads_of(node, index, found) for index in (0, 1))
            parts.append(_of_scores(node, query, key, how))
        except SharedChannelsError as error:
            left[f"{path} ({SCORES})"] = str(error)
        try:
            value, out = heads_of(node, 2, found), heads_out(node, found)
            parts.append(_of_values(node, value, out, how))
        except SharedChannelsError as error:
            left[f"{path} ({VALUES})"] = str(error)
    return parts


def _of_feed_forward(layer: FeedForwardPair, how: How) -> Part:
    wanted = Wanted(key=f"{layer.path} {MLP}", node=layer.down.node, value=layer.down.x)

    def task(width: int, found: Mapping[str, Array]) -> Task:
        down = weight_of(layer.down)
        if how.by == DATA:
            return Task(nystrom, (found[wanted.key], down, width, how.ridge))
        sizes = [np.square(weight_of(up)).sum(1) for up in layer.ups]
        kept = _largest(np.prod(sizes, 0) * np.square(down).sum(0), width)
        return solved((kept, down[:, kept], float("nan")))

    def shrink(solution: tuple[Array, Array, float], ledger: Ledger) -> float:
        kept, new, error = solution
        narrow_feed_forward(layer, kept, new, ledger)
        return error

    return Part(
        kind=MLP,
        path=layer.path,
        channels=layer.channels,
        heads=1,
        unit=1,
        parameters=sum(up.inputs for up in layer.ups) + layer.down.outputs,
        weights=(*(up.weight for up in layer.ups), layer.down.weight),
        wanted=(wanted,) if how.by == DATA else (),
        task=task,
        shrink=shrink,
    )


def nystrom(moment: Array, down: Array, width: int, ridge: float) -> tuple[Array, Array, float]:
    """Channels to keep, the last weight [N, width] for them, and the relative error of its outputs.

    Args:
        moment: C = a^T a / tokens [K, K].
        down: W_D [N, K].
        width: how many stay.
        ridge: lam, as a part of the mean of C's diagonal.
    """
    size = len(moment)
    mean = float(np.trace(moment)) / size
    c = moment / mean if mean > 0 else np.eye(size)
    inverse = np.linalg.inv(c + ridge * np.eye(size))
    kept = _largest(1 - ridge * np.diag(inverse), width)
    rank_deficient = np.linalg.matrix_rank(c, hermitian=True) < size
    jitter = (FEW if rank_deficient else JITTER) * np.eye(width)
    inner = c[np.ix_(kept, kept)] + jitter
    new = np.linalg.solve(inner, c[kept] @ down.T).T
    wrong = -down.copy()
    wrong[:, kept] += new
    whole = float(np.einsum("nk,kl,nl->", down, c, down, optimize=True))
    lost = float(np.einsum("nk,kl,nl->", wrong, c, wrong, optimize=True))
    return kept, new, lost / max(whole, 1e-300)


def _of_scores(node: ir.Node, query: HeadProjection, key: HeadProjection, how: How) -> Part:
    if (query.rotation is None) != (key.rotation is None) or query.size != key.size:
        raise SharedChannelsError("queries and keys are not turned alike")
    path, turned = module_of(node), query.rotation is not None
    wanted = tuple(
        Wanted(key=f"{path} {name}", node=node, value=value, by_head=True, squares=True)
        for name, value in zip(("q", "k"), node.inputs, strict=False)
        if value is not None
    )
    groups = query.heads // key.heads

    def task(width: int, found: Mapping[str, Array]) -> Task:
        if how.by == MAGNITUDE:
            squares = [
                np.square(weight_of(each.projection)).sum(1).reshape(each.heads, each.size)
                for each in (query, key)
            ]
        else:
            squares = [found[each.key] for each in wanted]
        by_key = squares[0].reshape(key.heads, groups, key.size).sum(1) * squares[1]
        kept = choose_channels(by_key, width, pairs=turned)
        gone = 1 - np.take_along_axis(by_key, kept, 1).sum() / max(by_key.sum(), 1e-300)
        return solved((kept, float(gone) if how.by == DATA else float("nan")))

    def shrink(solution: tuple[Array, float], ledger: Ledger) -> float:
        kept, error = solution
        scale = attribute(node, "scale")
        if scale is None:
            node.attributes["scale"] = ir.AttrFloat32("scale", float(key.size) ** -0.5)
        ledger.cache(path, "key", kept)
        narrow_scores(node, 0, query, np.repeat(kept, groups, axis=0), ledger)
        narrow_scores(node, 1, key, kept, ledger)
        return error

    return Part(
        kind=SCORES,
        path=path,
        channels=key.size,
        heads=key.heads,
        unit=2 if turned else 1,
        parameters=query.heads * query.projection.inputs + key.heads * key.projection.inputs,
        weights=(query.projection.weight, key.projection.weight),
        wanted=wanted if how.by == DATA else (),
        task=task,
        shrink=shrink,
    )


def choose_channels(scores: Array, width: int, *, pairs: bool) -> Array:
    """The channels [heads, width] with the largest `scores` [heads, size], in order.

    With `pairs`, i and i + size/2 stay together: first halves first.
    """
    if not pairs:
        return np.stack([_largest(row, width) for row in scores])
    half = scores.shape[1] // 2
    both = scores[:, :half] + scores[:, half:]
    kept = np.stack([_largest(row, width // 2) for row in both])
    return np.concatenate([kept, kept + half], axis=1)


def _of_values(node: ir.Node, value: HeadProjection, out: HeadsOut, how: How) -> Part:
    path = module_of(node)
    if value.rotation is not None:
        raise SharedChannelsError("positions turn its values")
    heads_value = node.inputs[2]
    assert heads_value is not None
    wanted = Wanted(key=f"{path} v", node=node, value=heads_value, by_head=True)
    groups = out.heads // value.heads

    def rows(last: Array) -> Array:
        """By head of values, [heads, size, groups, N], of the last weight [N, heads size]."""
        return last.reshape(len(last), value.heads, groups, value.size).transpose(1, 3, 2, 0)

    def task(width: int, found: Mapping[str, Array]) -> Task:
        by_head = rows(weight_of(out.projection))
        if how.by == DATA:
            each = by_head.reshape(value.heads, value.size, -1)
            return Task(best_bases, (found[wanted.key], each, width))
        size = np.square(weight_of(value.projection)).sum(1).reshape(value.heads, value.size)
        bias = vector_of(value.bias)
        size = size if bias is None else size + np.square(bias).reshape(size.shape)
        kept = choose_channels(size * np.square(by_head).sum((2, 3)), width, pairs=False)
        basis = np.stack([np.eye(value.size)[:, row] for row in kept])
        return solved((basis, np.swapaxes(basis, 1, 2), float("nan")))

    def shrink(solution: tuple[Array, Array, float], ledger: Ledger) -> float:
        basis, back, error = solution
        last, width = weight_of(out.projection), basis.shape[2]
        made = np.einsum("hks,hsgn->nhgk", back, rows(last))
        ledger.cache(path, "value", np.tile(np.arange(width), (value.heads, 1)))
        narrow_values(node, value, out, (basis, made.reshape(len(last), -1)), ledger)
        return error

    return Part(
        kind=VALUES,
        path=path,
        channels=value.size,
        heads=value.heads,
        unit=1,
        parameters=value.heads * value.projection.inputs + out.heads * out.projection.outputs,
        weights=(value.projection.weight, out.projection.weight),
        wanted=(wanted,) if how.by == DATA else (),
        task=task,
        shrink=shrink,
    )


def best_bases(moments: Array, rows: Array, width: int) -> tuple[Array, Array, float]:
    """P and Q of each head, [heads, ...], and the part that is lost of all; see `best_basis`."""
    found = [best_basis(moment, each, width) for moment, each in zip(moments, rows, strict=True)]
    basis, back = (np.stack([each[i] for each in found]) for i in (0, 1))
    return basis, back, sum(x[2] for x in found) / max(sum(x[3] for x in found), 1e-300)


def best_basis(moment: Array, rows: Array, width: int) -> tuple[Array, Array, float, float]:
    """P [size, k] and Q [k, size] so that v P Q W is nearest to v W; what is lost, and the whole.

    Args:
        moment: G = v^T v / tokens [size, size] of one head's values.
        rows: W [size, N], of all that read them.
        width: k.
    """
    squares, vectors = np.linalg.eigh(moment)
    known = squares > squares.max(initial=0) * UNKNOWN
    roots = np.sqrt(np.where(known, squares, 0))
    inverse = np.where(known, 1 / np.sqrt(np.where(known, squares, 1)), 0)
    product = roots[:, None] * (vectors.T @ rows)
    energies, left = np.linalg.eigh(product @ product.T)
    kept = left[:, ::-1][:, :width]
    lost, whole = float(np.maximum(energies, 0)[: len(rows) - width].sum()), float(energies.sum())
    basis = vectors @ (inverse[:, None] * kept)
    back = kept.T @ (roots[:, None] * vectors.T)
    counts = int((energies > energies.max(initial=0) * UNKNOWN).sum())
    if counts < width and not known.all():  # the rest is what data says nothing of
        off = vectors[:, ~known]
        _, others = np.linalg.eigh(off.T @ rows @ rows.T @ off)
        more = off @ others[:, ::-1][:, : width - counts]
        end = counts + more.shape[1]
        basis[:, counts:end], back[counts:end] = more, more.T
    return basis, back, lost, whole


def _largest(scores: Array, count: int) -> Array:
    """The places of the largest, in order; of equal ones the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])
