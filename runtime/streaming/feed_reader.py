"""What a stream is fed, checked: shapes and dtypes that were found right before are right again."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError
from intaglio.runtime.arrays import Array
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.step_inputs import (
    Sizes,
    as_arrays,
    require_no_conditions,
    require_within,
    sizes_of,
)
from intaglio.state import BATCH

FORMS = 256  # that are remembered: a token, and parts of prompts of many lengths

Form = tuple[tuple[tuple[int, ...], Any], ...]


class FeedReader:
    """Reads the feeds of a graph, of one row each; any thread may use it."""

    def __init__(self, entry: GraphEntry) -> None:
        """Take the graph."""
        self._entry, self._names = entry, tuple(spec.name for spec in entry.inputs)
        self._limits = replace(entry.limits, batch=None)
        self._known: dict[Form, Sizes] = {}

    def read(
        self, inputs: Mapping[str, npt.ArrayLike], own: Sizes
    ) -> tuple[dict[str, Array], Sizes]:
        """The inputs as arrays in memory of their own, and their sizes with those of `own`.

        Raises:
            InputError: if one is missing, unknown, or of a wrong dtype, shape or value.
        """
        specs = self._entry.inputs
        form = self._form(inputs)
        sizes = None if form is None else self._known.get(form)
        arrays: Mapping[str, Any] = inputs
        if sizes is None:
            require_no_conditions(inputs, self._entry.conditions, "open(conditions={})")
            arrays = as_arrays(inputs, specs)
            sizes = sizes_of(arrays, specs, self._limits)
            if sizes[BATCH] != 1:
                raise InputError(f"A stream has one row, and its feed has {sizes[BATCH]}.")
            if form is not None and len(self._known) < FORMS:
                self._known[form] = sizes
        if own:
            sizes = {**own, **sizes}
        require_within(arrays, specs, sizes)
        return {spec.name: np.array(arrays[spec.name], spec.dtype) for spec in specs}, sizes

    def _form(self, inputs: Mapping[str, Any]) -> Form | None:
        """Shapes and dtypes of inputs that are arrays and the ones that there are; else None."""
        if len(inputs) != len(self._names):
            return None
        try:
            arrays = [inputs[name] for name in self._names]
        except KeyError:
            return None
        if not all(type(array) is np.ndarray for array in arrays):
            return None
        return tuple([(array.shape, array.dtype) for array in arrays])
