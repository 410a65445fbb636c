"""One step of given rows: finding or making its plan, running it, moving the states on."""

from collections.abc import Mapping
from typing import Any

from intaglio.runtime.arrays import Array
from intaglio.runtime.backend import Backend
from intaglio.runtime.carried import Carried
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.plan import Plan
from intaglio.runtime.shapes import Sizes

PLANS = 8  # shapes of step that stay bound to one memory of states


class Stepper:
    """Runs steps of a graph on states that it is given; holds none itself.

    Attributes:
        most_tokens: of a row that one step takes, None for any number.
    """

    def __init__(self, backend: Backend, manifest: Manifest) -> None:
        self.most_tokens = backend.most_tokens
        self._backend = backend
        self._names = tuple(spec.name for spec in manifest.inputs)

    def known(self, carried: Carried, inputs: Mapping[str, Any]) -> Plan | None:
        """The plan of an earlier step whose inputs had the same names and shapes, if any."""
        if len(inputs) != len(self._names):
            return None
        try:
            plan: Plan | None = carried.plans.get(tuple([inputs[n].shape for n in self._names]))
        except (KeyError, AttributeError):
            return None
        return plan

    def step(
        self,
        carried: Carried,
        arrays: Mapping[str, Array],
        sizes: Sizes,
        out: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Take a step of `arrays`, checked inputs of these sizes; as `run` otherwise."""
        plan = self.known(carried, arrays) or self._plan(carried, arrays, sizes)
        return self.run(carried, plan, arrays, out)

    def run(
        self,
        carried: Carried,
        plan: Plan,
        inputs: Mapping[str, Any],
        out: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Take a step of `inputs`, whose shapes are the plan's.

        Raises:
            InputError: if a dtype does not fit, or the engine refuses the values.
            DeviceError: if the GPU that runs it fails.
            StateError: if there is no room for the tokens.
        """
        tokens = carried.longest + plan.time
        if tokens > carried.room:
            carried.reserve(tokens)
            plan = self._plan(carried, inputs, plan.sizes)
        plan.feed(inputs)
        results = plan.results(out)
        plan.run(carried, results)
        carried.advance(plan.time)
        return results

    def _plan(self, carried: Carried, arrays: Mapping[str, Array], sizes: Sizes) -> Plan:
        plan = self._backend.plan(sizes, carried)
        while len(carried.plans) >= PLANS:
            del carried.plans[next(iter(carried.plans))]
        carried.plans[tuple([arrays[n].shape for n in self._names])] = plan
        return plan
