"""Bases that the code of the interaction basis found: what its results file says of each node.

`interaction_rotations` lists, of each `node_layer`, C [K + 1, k] and C_pinv [k, K + 1] of the
vectors [x, 1] there, biases being folded, or [K, k] of x alone.  Reading runs none of its code.

Source: github ApolloResearch/rib @ 7a6199f, rib/interaction_algos.py and rib/rib_builder.py.
"""

import pathlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intaglio.errors import PassError

from ._interaction import Basis

Array = npt.NDArray[Any]


def read_rib(path: Path, who: str) -> dict[str, Mapping[str, Any]]:
    """What a results file says of each node that has a basis.

    Raises:
        PassError: if it cannot be read, or has none.
    """
    try:
        with torch.serialization.safe_globals([pathlib.PosixPath, pathlib.PurePosixPath]):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of the file system, of zip, of pickle, by what the file holds
        line = str(error).partition("\n")[0].rstrip(".")
        raise PassError(f"{who}: {path} cannot be read as results of rib: {line}.") from error
    listed = held.get("interaction_rotations") if isinstance(held, dict) else None
    found: dict[str, Mapping[str, Any]] = {
        str(each["node_layer"]): each
        for each in (listed if isinstance(listed, list) else ())
        if isinstance(each, dict)
        and "node_layer" in each
        and isinstance(each.get("C"), Tensor)
        and isinstance(each.get("C_pinv"), Tensor)
    }
    if not found:
        raise PassError(
            f"{who}: {path} has no interaction_rotations with C and C_pinv, as results of rib have."
        )
    return found


def rib_basis(node: str, told: Mapping[str, Any], inputs: int, who: str) -> Basis:
    """The basis of a node for what reads `inputs` entries there, its directions as they stand.

    Raises:
        PassError: if the node is of another width.
    """
    forth, back = (told[name].double().numpy() for name in ("C", "C_pinv"))
    rows, kept = forth.shape if forth.ndim == 2 else (0, 0)
    if rows not in (inputs, inputs + 1) or back.shape != (kept, rows):
        raise PassError(
            f"{who}: the node {node!r} of rib has C {list(forth.shape)} and C_pinv "
            f"{list(back.shape)}; {inputs} entries are read there, and perhaps a folded bias. Say "
            "by nodes, in a recipe, which layers read it."
        )
    values = told.get("Lambda")
    spectrum = np.ones(kept)
    if isinstance(values, Tensor) and len(values) >= kept:
        spectrum = np.sort(np.abs(values.double().numpy()))[::-1][:kept]
    folded = rows > inputs
    return Basis(
        C=forth[:inputs],
        inverse=back[:, :inputs],
        spectrum=spectrum,
        span=kept,
        fold=(forth[inputs], back[:, inputs]) if folded else None,
    )
