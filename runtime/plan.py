"""One shape of step, bound to one memory of states: a repeat copies inputs and small outputs."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnxruntime import OrtValue

from intaglio.errors import InputError
from intaglio.runtime.buffers import dtype_of
from intaglio.runtime.carried import Carried
from intaglio.runtime.manifest import Manifest, TensorSpec
from intaglio.runtime.shapes import Array, Sizes, check_out, shape_of
from intaglio.state import PAST_LENGTH, TIME

Arrays = Mapping[str, Array]

COPIED = 1 << 16  # bytes up to which copying an output takes less than binding an array for it
_NOTHING = OrtValue.ortvalue_from_numpy(np.empty(0, np.uint8))


class Plan:
    """A step of inputs of given shapes; a session runs its binding and advances the state.

    Attributes:
        sizes: sizes of the symbolic dimensions.
        time: tokens of each row.
    """

    def __init__(
        self,
        engine: Any,
        manifest: Manifest,
        sizes: Sizes,
        carried: Carried,
    ) -> None:
        """Bind `carried`, and buffers for inputs of these sizes."""
        self.sizes = sizes
        self.time = sizes[TIME]
        self._engine = engine
        self._feeds = [
            (spec.name, np.empty(shape_of(spec, sizes), dtype_of(spec.dtype, spec.name)))
            for spec in manifest.inputs
        ]
        self._outputs = [
            (spec.name, shape_of(spec, sizes), dtype_of(spec.dtype, spec.name))
            for spec in manifest.outputs
        ]
        self._kept = {
            name: np.empty(shape, dtype)
            for name, shape, dtype in self._outputs
            if math.prod(shape) * dtype.itemsize <= COPIED
        }
        self._lent = [name for name, _, _ in self._outputs if name not in self._kept]
        # Seen as unsigned, a negative id is huge: one comparison finds both kinds of stray.
        self._bounded = [
            (spec, buffer, buffer.view(f"u{buffer.itemsize}"))
            for spec, (_, buffer) in zip(manifest.inputs, self._feeds, strict=True)
            if spec.below is not None and buffer.dtype.kind == "i"
        ]
        self._past = carried.past_value if manifest.past_length else None
        self._bindings = [self._bind(carried, side) for side in (0, 1)]

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
        for spec, buffer, unsigned in self._bounded:
            if unsigned.max() >= spec.below:
                raise InputError(_stray(spec, buffer))

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

    def binding(self, carried: Carried, results: Mapping[str, Array]) -> Any:
        """The binding of the step that `carried` takes next, writing large outputs to `results`."""
        binding = self._bindings[carried.side]
        for name in self._lent:
            binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(results[name]))
        for buffer in carried.appended:
            buffer.bind_step(binding, carried.side, carried.longest, self.time)
        return binding

    def release(self, binding: Any) -> None:
        """Let go of the results, which are the caller's."""
        for name in self._lent:
            binding.bind_ortvalue_output(name, _NOTHING)

    def fill(self, results: Mapping[str, Array]) -> None:
        """Copy the small outputs of the step that was run into `results`."""
        for name, array in self._kept.items():
            np.copyto(results[name], array)

    def _bind(self, carried: Carried, side: int) -> Any:
        binding = self._engine.io_binding()
        for name, buffer in self._feeds:
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(buffer))
        if self._past is not None:
            binding.bind_ortvalue_input(PAST_LENGTH, self._past)
        for name, array in self._kept.items():
            binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(array))
        for state in carried.buffers:
            state.bind(binding, side)
        return binding


def _stray(spec: TensorSpec, ids: Array) -> str:
    """Say which id is none of the table's, and where it stands."""
    assert spec.below is not None
    place = tuple(np.argwhere((ids < 0) | (ids >= spec.below))[0].tolist())
    return (
        f"The input {spec.name!r} has {ids[place]} at {list(place)}; it should be from 0 to "
        f"{spec.below - 1}. Is this the tokenizer of this model?"
    )
