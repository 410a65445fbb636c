"""The weights of a source that compute what those of a bundle do, pass by pass from the last back.

A pass that compresses says in its record what became of each weight: of which rows and columns of
the one before it it is (`placed`, see `passes/calibrated/_narrow.py`), of which two it is the
product (`factored`), and of which two it was made (`merged`).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import BundleError

Array = npt.NDArray[Any]
Axes = dict[str, frozenset[int]]
NONE: frozenset[int] = frozenset()


def compressed_names(told: Sequence[Mapping[str, Any]], changed: Collection[str]) -> set[str]:
    """Names of weights that passes compressed; of merged ones those that others changed, too."""
    found = set(changed)
    for details in told:
        found.update(details.get("placed", {}))
        for name, pair in details.get("factored", {}).items():
            found.update([name, *pair])
    merged = [item for details in told for item in details.get("merged", {}).items()]
    count = -1
    while count != len(found):
        count = len(found)
        for name, made in merged:
            parts = {name, *(made[key] for key in ("first", "second", "base") if key in made)}
            if parts & found:
                found |= parts | set(made.get("bias", ()))
    return found


def before_passes(
    weights: Mapping[str, Array], told: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Array], Axes]:
    """The source's weights that compute what those of the bundle do, from the last pass back.

    Of two factors in place of which a pass put their product, the second becomes the product and
    the first the identity, so that they meet along an axis of another size than in the source.

    Args:
        weights: those of the bundle by name.
        told: the details of each pass, in the order in which they ran.

    Returns:
        The weights, and of each that has such axes which they are.

    Raises:
        BundleError: if what a pass told does not fit them.
    """
    now = dict(weights)
    meeting: Axes = {}
    for details in reversed(told):
        pairs, placed = details.get("factored", {}), details.get("placed", {})
        now |= {name: _product(name, now, pair) for name, pair in pairs.items()}
        for name, (left, right) in pairs.items():
            meeting[name] = (meeting.get(left, NONE) & {0}) | (meeting.get(right, NONE) & {1})
        for name in placed.keys() & now.keys():
            now[name] = _put_back(name, now[name], placed[name], meeting.get(name, NONE))
        for name, made in _last_first(details.get("merged", {})):
            if name in now:
                found, axes = _apart(name, now, made, meeting.get(name, NONE))
                now |= found
                meeting |= axes
    return now, {name: axes for name, axes in meeting.items() if axes}


def _last_first(merged: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What was merged, each before those that it was made of."""
    left = dict(merged)
    while left:
        used = {made.get(key) for made in left.values() for key in ("first", "second", "base")}
        last = [name for name in left if name not in used] or list(left)
        yield from ((name, left.pop(name)) for name in last)


def _apart(
    name: str, weights: Mapping[str, Array], made: Mapping[str, Any], meeting: frozenset[int]
) -> tuple[dict[str, Array], Axes]:
    """What two weights of a source compute as, of which a pass made `name`, and where they meet.

    Of a product W, and c that went behind it where the first had a bias: [W c] times [I 0]^T and
    the bias [0 1], of several biases the first.  What was added to a base is in the base, and its
    second factor is zeros.

    Raises:
        BundleError: if the graph does not hold what the pass told of.
    """
    try:
        weight = weights[name]
        if "base" in made:
            zeros = np.zeros(made["shape"], weight.dtype)
            return {made["base"]: weight, made["second"]: zeros}, {made["base"]: meeting}
        first_by_output, by_output = made["by_output"]
        second = weight if by_output else weight.T
        first = np.eye(second.shape[1], dtype=weight.dtype)
        found: dict[str, Array] = {}
        axes: Axes = {}
        if "bias" in made:
            *biases, moved = made["bias"]
            second = np.concatenate([second, weights[moved][:, None]], axis=1)
            one = np.eye(second.shape[1], dtype=weight.dtype)[-1]
            found = {bias: 0 * one if bias in biases[1:] else one for bias in biases}
            axes = dict.fromkeys(biases, frozenset({0}))
            first = np.concatenate([first, np.zeros_like(first[:1])])
        outputs, inputs = (1 - by_output in meeting, by_output in meeting)
        found[made["first"]] = first if first_by_output else first.T
        axes[made["first"]] = _axes(by_output=first_by_output, outputs=True, inputs=inputs)
        found[made["second"]] = second if by_output else second.T
        axes[made["second"]] = _axes(by_output=by_output, outputs=outputs, inputs=True)
    except (IndexError, KeyError, MemoryError, TypeError, ValueError) as error:
        raise BundleError(
            f"The manifest says that {name!r} was made of two weights, which the portable graph "
            "does not hold so. Export the bundle again."
        ) from error
    return found, axes


def _axes(*, by_output: bool, outputs: bool, inputs: bool) -> frozenset[int]:
    """Which axes of a weight are meant by its outputs and by its inputs."""
    chosen = (outputs, inputs) if by_output else (inputs, outputs)
    return frozenset(axis for axis, wanted in enumerate(chosen) if wanted)


def _product(name: str, weights: Mapping[str, Array], pair: Sequence[str]) -> Array:
    """The weight that two factors stand for.

    Raises:
        BundleError: if the graph does not hold them, or they are no factors.
    """
    try:
        left, right = (weights[each].astype(np.float64) for each in pair)
        return (left @ right).astype(np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"The manifest says that {name!r} is a product of two weights, which the portable "
            "graph does not hold so. Export the bundle again."
        ) from error


def _put_back(
    name: str, array: Array, placement: Mapping[str, Any], meeting: Collection[int]
) -> Array:
    """The weight of the source's shape that computes what a compressed one does.

    The axes `meeting` stay as they are.

    Raises:
        BundleError: if the placement does not fit it.
    """
    try:
        shape = [int(n) for n in placement["shape"]]
        for axis in meeting:
            shape[axis] = array.shape[axis]
        index = np.ix_(
            *(
                np.arange(size) if at is None else np.asarray(at, np.int64)
                for size, at in zip(array.shape, placement["places"], strict=True)
            )
        )
        alone = all(len(np.unique(at)) == at.size and (at >= 0).all() for at in index)
        full = np.zeros(shape, array.dtype)
        full[index] = array
    except (IndexError, KeyError, MemoryError, TypeError, ValueError) as error:
        raise BundleError(_misplaced(name)) from error
    if not alone:
        raise BundleError(_misplaced(name))
    return full


def _misplaced(name: str) -> str:
    return (
        f"What the manifest says of where the rows and columns of {name!r} belong does not fit the "
        "weight. Export the bundle again."
    )
