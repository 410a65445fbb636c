"""Whether the loops of a graph ended below their tolerance, as far as its outputs tell.

A solver that reaches its cap gives what it has: the residual that it left stands beside it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from intaglio.errors import ConvergenceError
from intaglio.runtime.arrays import Array
from intaglio.runtime.graph_entry import TensorSpec


def unconverged(outputs: Sequence[TensorSpec], found: Mapping[str, Array]) -> str | None:
    """What of `found` is above the tolerance of its loop, in a sentence; None where nothing is."""
    for spec in outputs:
        if spec.tolerance is None or spec.name not in found:
            continue
        value = np.asarray(found[spec.name])
        above = ~(value <= np.float32(spec.tolerance))  # what is no number as well
        if not above.any():
            continue
        worst = value[above].max()
        rows = "" if value.ndim == 0 else f" of {np.count_nonzero(above)} of {value.size} entries"
        return (
            f"The loop did not converge: {spec.name}{rows} is above the tolerance "
            f"{spec.tolerance:g}, up to {worst:g}. Begin nearer to the solution, or export with "
            "more steps or a larger tolerance."
        )
    return None


def require_converged(outputs: Sequence[TensorSpec], found: Mapping[str, Array]) -> None:
    """Hold outputs to the tolerances of their loops.

    Raises:
        ConvergenceError: if one is above; it has the outputs.
    """
    said = unconverged(outputs, found)
    if said is not None:
        raise ConvergenceError(said, found)
