"""What runs a target: memory for carried states, and steps that are bound to it.

A backend serves one session; the engine behind it, with its weights, is shared.
"""

from collections.abc import Mapping
from typing import Protocol, Self

from intaglio.errors import BundleError
from intaglio.runtime.arrays import Array
from intaglio.runtime.bound_step import BoundStep
from intaglio.runtime.bundle import BundleGraph
from intaglio.runtime.carried_states import CarriedStates
from intaglio.runtime.state_memory import StateMemory
from intaglio.runtime.step_inputs import Sizes
from intaglio.state import PAST_LENGTH


class Backend(StateMemory, Protocol):
    """Memory and steps of one target.

    Attributes:
        spans: least and largest size of each free axis that one call takes, where there are such.
        most_tokens: of a row that one call of the engine takes, None for any number.
        most_rows: that one call takes, None for any number.
        capacity: tokens that its caches have room for, where the engine fixes that.
    """

    spans: Mapping[str, tuple[int, int]]
    most_tokens: int | None
    most_rows: int | None
    capacity: int | None

    def bind(self, sizes: Sizes, carried: CarriedStates) -> BoundStep:
        """A step of inputs of these sizes, bound to the memory of `carried`."""

    def call(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for inputs of any sizes, of a graph without states.

        Raises:
            InputError: if the engine refuses the values, or was not built for their sizes.
            DeviceError: if the GPU that runs it fails.
        """

    def fork(self) -> Self:
        """A backend for another session of the same engine."""


def check_names(graph: BundleGraph, path: str, takes: set[str], gives: set[str]) -> None:
    """Refuse an engine that takes or gives something else than its manifest says.

    Args:
        graph: of a bundle.
        path: where the engine lies in the bundle.
        takes: names of the engine's inputs.
        gives: names of its outputs.

    Raises:
        BundleError: if they are others.
    """
    entry = graph.entry
    inputs = {spec.name for spec in entry.inputs} | {spec.input for spec in entry.states}
    outputs = {spec.name for spec in entry.outputs}
    outputs |= {spec.output for spec in entry.states if spec.output}
    if entry.past_length:
        inputs.add(PAST_LENGTH)
    for what, expected, found in (("takes", inputs, takes), ("gives", outputs, gives)):
        if expected != found:
            raise BundleError(
                f"{graph.root / path} {what} {', '.join(sorted(found))}, but the manifest says "
                f"{', '.join(sorted(expected))}. Export the bundle again."
            )
