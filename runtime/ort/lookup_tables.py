"""Products of 2 bits by tables of the sums that four codes can make of each four inputs.

ONNX Runtime has such a kernel behind a session's option, after T-MAC (Wei et al. 2024,
arXiv:2407.00088).  It is faster than the plain one for one token of one row, and slower for more,
so that a bundle is opened twice to have both, each with packed weights of its own.  Its tables are
rounded to 8 bits, as the plain kernel's inputs are, and what it makes of them is no coarser.  But
it takes every product of 2 bits, whatever accuracy the graph asks for; those that are computed in
two parts rely on how the plain kernel rounds.
"""

from collections.abc import Mapping
from typing import Any

from intaglio.errors import InputError
from intaglio.runtime.graph_entry import GraphEntry

OPTION = "mlas.use_lut_gemm"


def require_tables(entry: GraphEntry) -> None:
    """Refuse a graph whose products tables cannot serve.

    Raises:
        InputError: if it has no weights of 2 bits, or products that have to be finer than tables.
    """
    details = [record.get("details", {}) for record in entry.passes]
    found: Mapping[str, Any] = next((each for each in details if "accuracy" in each), {})
    if not any(str(kind).startswith("2 bits") for kind in found.get("weights", ())):
        raise InputError(
            "Look-up tables serve products with weights of 2 bits, and this bundle has none. Load "
            "it without them."
        )
    if found["accuracy"] != "fast":
        raise InputError(
            "Look-up tables round inputs to 8 bits, and this bundle has products that do not. Load "
            "it without them, or export it with --ort-accuracy fast."
        )
