"""Graphs that passes made, lowered for TensorRT: held to their portable forms by numbers.

No source has them, so that nothing verifies an engine of one; the pass has proven what they are.
They run one after the other on random inputs, and what one gives another takes by its name, as
replays take what was recorded.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.passes import evaluate
from intaglio.passes.graph import dims

ROWS, LIMIT = 3, 1e-4


def differing(graphs: Mapping[str, tuple[ir.Model, ir.Model | None]]) -> dict[str, str]:
    """What is wrong with lowered graphs, by name; `graphs` hold the portable form and the lowered.

    Those come first that others take from.
    """
    draw, known, wrong = np.random.default_rng(0), dict[str, npt.NDArray[Any]](), {}
    for name, (portable, lowered) in graphs.items():
        feeds = {}
        for value in portable.graph.inputs:
            shape = [dim if isinstance(dim, int) else ROWS for dim in dims(value) or ()]
            drawn = draw.standard_normal(shape).astype(np.float32)
            feeds[str(value.name)] = known.get(str(value.name), drawn)
        wanted = evaluate.run(portable, feeds)
        if lowered is not None:
            found = evaluate.run(lowered, feeds)
            errors = {each: _error(found[each], value) for each, value in wanted.items()}
            worst = max(errors, key=errors.__getitem__)
            if not errors[worst] <= LIMIT:
                wrong[name] = f"{worst!r} is off by {errors[worst]:.1e} of its largest entry"
        known.update({each: value for each, value in wanted.items() if each not in known})
    return wrong


def _error(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    largest = np.abs(wanted.astype(np.float64)).max(initial=1e-30)
    return float(np.abs(found.astype(np.float64) - wanted).max(initial=0) / largest)
