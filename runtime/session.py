"""Stepping a bundle: tokens in, outputs out, the state carried along.

session = Session.load("bundle/")
logits = session.step({"input_ids": ids})["logits"]
"""

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy.typing as npt

from intaglio.errors import InputError, StateError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.carried import Settings
from intaglio.runtime.engine import AUTO, choose_target, open_engine
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.ragged import step_rows
from intaglio.runtime.shapes import Array, as_arrays, lengths_of, sizes_of
from intaglio.runtime.state import State
from intaglio.runtime.stepper import Stepper
from intaglio.state import BATCH, TIME

CAPACITY = 256


class Session:
    """A step engine with a state of its own; load one with `Session.load`.

    Sessions of one bundle share its weights.  A session serves one thread; threads may run
    sessions of one bundle side by side.

    Attributes:
        bundle: what was loaded.
        target: name of the target that runs.
        state: the carried state.
    """

    def __init__(self, bundle: Bundle, target: str, engine: Any, state: State) -> None:
        self.bundle = bundle
        self.target = target
        self.state = state
        self._engine = engine
        self._stepper = Stepper(engine, bundle.manifest)
        self._turn = threading.Lock()

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | Bundle,
        target: str = AUTO,
        *,
        threads: int | None = None,
        capacity: int | None = None,
        grow: bool = True,
    ) -> Self:
        """Open a bundle for stepping.

        Args:
            bundle: the folder that `intaglio export` wrote.
            target: "ort", or "auto" for the best that the bundle holds.
            threads: threads for the work inside one operator; None leaves it to the engine.
            capacity: tokens that KV caches have room for at the start: 256, or the model's
                max_context if that is less.
            grow: whether caches double when they are full; if not, a step beyond is refused.

        Raises:
            BundleError: if the bundle is absent, incomplete, changed or not for this target.
            InputError: if `capacity` is below 1.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        if capacity is not None and capacity < 1:
            raise InputError(f"capacity is {capacity}, should be at least 1.")
        target = choose_target(opened, target)
        limits = opened.manifest.limits
        settings = Settings(
            specs=opened.manifest.states,
            max_context=limits.max_context,
            capacity=CAPACITY if capacity is None else capacity,
            grow=grow,
        )
        state = State(settings, opened.fingerprint(target), limits.batch)
        return cls(opened, target, open_engine(opened, target, threads), state)

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    def fork(self) -> "Session":
        """A session that continues from here with a state of its own, sharing the weights."""
        return Session(self.bundle, self.target, self._engine, self.state.copy())

    def step(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        lengths: Sequence[int] | npt.NDArray[Any] | None = None,
        out: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Consume the next tokens of each row and return the outputs for them.

        Any way to cut a sequence into steps gives the same outputs.  The first step after load or
        reset decides the number of rows.  A step that fails leaves the state as it was.
        A bundle of whole sequences (`manifest.whole`) carries nothing: each call stands alone.

        Args:
            inputs: arrays by name, as the manifest's `inputs` say: for language models
                `input_ids`, integers [batch, time].
            lengths: how many tokens of each row count, where rows are of unequal length and
                padded on the right; outputs beyond a row's length are 0.
            out: arrays to write outputs into, by name; the others are allocated.

        Returns:
            The outputs by name, those of `out` included; the session keeps no hold on them.

        Raises:
            InputError: if an input is missing, unknown, or of a wrong dtype or shape, or a value
                is one the model cannot take, like a token beyond its vocabulary.
            StateError: if the number of rows changed, a row would exceed max_context or a fixed
                capacity, or another thread is within a step of this session.
        """
        if not self._turn.acquire(blocking=False):
            raise StateError(
                "A session serves one thread, and another one is within its step. Give each thread "
                "a session of its own, by fork or load: sessions of one bundle share its weights."
            )
        try:
            return self._step(inputs, lengths, out)
        finally:
            self._turn.release()

    def _step(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        lengths: Sequence[int] | npt.NDArray[Any] | None,
        out: Mapping[str, Array] | None,
    ) -> dict[str, Array]:
        if lengths is None and not self.bundle.manifest.whole:
            carried = self.state.carried
            plan = self._stepper.known(carried, inputs)
            if plan is not None:
                return self._stepper.run(carried, plan, inputs, out)
        manifest = self.bundle.manifest
        if manifest.whole:
            self.state.reset()
        arrays = as_arrays(inputs, manifest.inputs)
        sizes = sizes_of(arrays, manifest.inputs, manifest.limits)
        if lengths is not None:
            counts = lengths_of(lengths, sizes)
            if counts.min() < sizes[TIME]:
                return step_rows(self._stepper, self.state, manifest, arrays, sizes, counts, out)
        carried = self.state.begin(sizes[BATCH])
        results = self._stepper.step(carried, arrays, sizes, out)
        self.state.carried = carried
        return results
