"""One step of given rows: finding or binding it, running it, moving the states on."""

from collections.abc import Mapping
from typing import Any

from intaglio.runtime.arrays import Array
from intaglio.runtime.backend import Backend
from intaglio.runtime.bound_step import BoundStep
from intaglio.runtime.carried_states import CarriedStates
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.step_inputs import Sizes, require_ends

BOUND = 8  # shapes of step that stay bound to one memory of states


class Stepper:
    """Runs steps of a graph on states that it is given; holds none itself.

    Attributes:
        most_tokens: of a row that one step takes, None for any number.
    """

    def __init__(self, backend: Backend, entry: GraphEntry) -> None:
        self.most_tokens = backend.most_tokens
        self._backend = backend
        self._ends = entry.limits.ends
        self._names = tuple(spec.name for spec in entry.inputs)

    def known(self, carried: CarriedStates, inputs: Mapping[str, Any]) -> BoundStep | None:
        """An earlier step whose inputs had the same names and shapes, if any, as it was bound."""
        if len(inputs) != len(self._names):
            return None
        try:
            step: BoundStep | None = carried.steps.get(
                tuple([inputs[n].shape for n in self._names])
            )
        except (KeyError, AttributeError):
            return None
        return step

    def step(
        self,
        carried: CarriedStates,
        arrays: Mapping[str, Array],
        sizes: Sizes,
        out: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Take a step of `arrays`, checked inputs of these sizes; as `run` otherwise."""
        step = self.known(carried, arrays) or self._bind(carried, arrays, sizes)
        return self.run(carried, step, arrays, out)

    def run(
        self,
        carried: CarriedStates,
        step: BoundStep,
        inputs: Mapping[str, Any],
        out: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Take a step of `inputs`, which have the shapes that it was bound for.

        Raises:
            InputError: if a dtype does not fit, the engine refuses the values, or a block of tokens
                that see each other is not whole.
            DeviceError: if the GPU that runs it fails.
            StateError: if there is no room for the tokens.
        """
        if self._ends:
            require_ends(self._ends, carried.past_length, step.time)
        tokens = carried.longest + step.time
        if tokens > carried.room:
            carried.reserve(tokens)
            step = self._bind(carried, inputs, step.sizes)
        step.feed(inputs)
        results = step.results(out)
        step.run(carried, results)
        carried.advance(step.time)
        return results

    def _bind(self, carried: CarriedStates, arrays: Mapping[str, Array], sizes: Sizes) -> BoundStep:
        step = self._backend.bind(sizes, carried)
        while len(carried.steps) >= BOUND:
            del carried.steps[next(iter(carried.steps))]
        carried.steps[tuple([arrays[n].shape for n in self._names])] = step
        return step
