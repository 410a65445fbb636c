"""A step of inputs of given shapes, bound to one memory of states."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from intaglio.errors import InputError
from intaglio.runtime.arrays import Array, dtype_of
from intaglio.runtime.carried_states import CarriedStates
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.step_inputs import (
    Sizes,
    check_out,
    follows,
    limit_of,
    shape_of,
    stray,
    strays_of,
)
from intaglio.state import TIME

Arrays = Mapping[str, Array]


class BoundStep(ABC):
    """A step that may be taken again and again: inputs are copied in, outputs come out.

    Attributes:
        sizes: sizes of the symbolic dimensions.
        time: tokens of each row.
    """

    def __init__(self, entry: GraphEntry, sizes: Sizes, feeds: Sequence[Array]) -> None:
        """Take `feeds`, an array for each input of the entry that the engine reads."""
        self.sizes = sizes
        self.time = sizes[TIME]
        self._feeds = [(s.name, array) for s, array in zip(entry.inputs, feeds, strict=True)]
        self._outputs = [
            (spec.name, shape_of(spec, sizes), dtype_of(spec.dtype, spec.name))
            for spec in entry.outputs
            if follows(spec, sizes)
        ]
        self._told = [spec.name for spec in entry.outputs if not follows(spec, sizes)]
        # Seen as unsigned, a negative id is huge: one comparison finds both kinds of stray.
        self._bounded = [
            (spec, limit_of(spec, sizes), buffer, buffer.view(f"u{buffer.itemsize}"))
            for spec, buffer in zip(entry.inputs, feeds, strict=True)
            if spec.below is not None and buffer.dtype.kind == "i" and buffer.size
        ]

    @abstractmethod
    def run(self, carried: CarriedStates, results: dict[str, Array]) -> None:
        """Run the step that was fed from the current side of `carried`, filling `results`.

        Raises:
            InputError: if the engine refuses the values; the state is then as it was.
            DeviceError: if the GPU that runs it fails.
        """

    def feed(self, inputs: Arrays) -> None:
        """Copy the inputs of one step in.

        Raises:
            InputError: if one has a dtype that does not widen safely to the graph's, or an id that
                its table does not have.
        """
        for name, buffer in self._feeds:
            try:
                np.copyto(buffer, inputs[name], casting="safe")
            except TypeError as error:
                raise InputError(
                    f"The input {name!r} is {inputs[name].dtype}, should be {buffer.dtype}. "
                    f"Convert it with astype({str(buffer.dtype)!r})."
                ) from error
        for spec, limit, buffer, unsigned in self._bounded:
            if isinstance(limit, int):
                strays = unsigned.max() >= limit
            else:
                strays = np.any(strays_of(buffer, limit))
            if strays:
                raise InputError(stray(spec, limit, buffer))

    def results(self, out: Arrays | None) -> dict[str, Array]:
        """Arrays for the outputs of one step: those of `out`, and new ones for the rest.

        Raises:
            InputError: if `out` names no output, or an array is not as the output needs it.
        """
        if not out:
            return {name: np.empty(shape, dtype) for name, shape, dtype in self._outputs}
        check_out(out, self._outputs)
        return {
            name: out[name] if name in out else np.empty(shape, dtype)
            for name, shape, dtype in self._outputs
        }
