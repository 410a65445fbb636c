"""What runs a target: where carried states live, and steps that are bound to them.

A backend serves one session; the engine behind it, with its weights, is shared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

from intaglio.errors import BundleError
from intaglio.runtime.arrays import Array
from intaglio.runtime.bundle import Bundle
from intaglio.state import PAST_LENGTH

if TYPE_CHECKING:
    from intaglio.runtime.carried import Carried
    from intaglio.runtime.plan import Plan
    from intaglio.runtime.shapes import Sizes
    from intaglio.state import StateSpec

AUTO = "auto"
TARGETS = ("ort", "trt")  # in the order in which AUTO prefers them


class Buffer(Protocol):
    """Memory of one state, for a fixed number of rows and of tokens where the state grows.

    A `side`, 0 or 1, says which of two swapped arrays holds the current state; the `Carried` that
    owns the buffer keeps it.
    """

    spec: StateSpec

    @property
    def nbytes(self) -> int:
        """Bytes held."""

    def value(self, side: int, tokens: int) -> Array:
        """The current state, for reading: of its first `tokens` tokens where it grows."""

    def put(self, side: int, tokens: int, rows: Any, value: Any) -> None:
        """Set `rows` of what `value` returns."""


class Backend(Protocol):
    """Memory and steps of one target.

    Attributes:
        most_tokens: of a row that one call of the engine takes, None for any number.
        most_rows: that one call takes, None for any number.
        capacity: tokens that its caches have room for, where the engine fixes that.
    """

    most_tokens: int | None
    most_rows: int | None
    capacity: int | None

    def buffer(self, spec: StateSpec, batch: int, tokens: int) -> Buffer:
        """Memory for a state in its initial value."""

    def plan(self, sizes: Sizes, carried: Carried) -> Plan:
        """A step of inputs of these sizes, bound to the memory of `carried`."""

    def fork(self) -> Self:
        """A backend for another session of the same engine."""


def choose_target(bundle: Bundle, target: str) -> str:
    """The target to run: `target`, or with "auto" the best that the bundle and this package have.

    Raises:
        BundleError: if there is none.
    """
    if target == AUTO:
        target = next((name for name in TARGETS if name in bundle.manifest.targets), TARGETS[0])
    if target not in TARGETS:
        known = ", ".join(TARGETS)
        raise BundleError(f"intaglio cannot run the target {target!r}; it runs: {known}.")
    bundle.target(target)
    return target


def open_backend(bundle: Bundle, target: str, threads: int | None) -> Backend:
    """What runs `target` of a bundle.

    Args:
        bundle: files that are opened are checked against its manifest.
        target: as `choose_target` returns it.
        threads: threads for the work inside one operator, on a processor.

    Raises:
        BundleError: if a file is absent or changed, or the engine refuses it.
        DeviceError: if the engine is for another GPU or another library.
        MissingExtraError: if the engine's library is not installed.
    """
    # Each library is imported where it is used: neither needs the other to be installed.
    if target == "ort":
        from intaglio.runtime.ort.engine import OrtBackend, open_engine

        return OrtBackend(open_engine(bundle, target, threads), bundle.manifest)
    from intaglio.runtime.trt import engine

    return engine.open_backend(bundle)


def check_names(bundle: Bundle, path: str, takes: set[str], gives: set[str]) -> None:
    """Refuse an engine that takes or gives something else than its manifest says.

    Args:
        bundle: with the manifest.
        path: where the engine lies in it.
        takes: names of the engine's inputs.
        gives: names of its outputs.

    Raises:
        BundleError: if they are others.
    """
    manifest = bundle.manifest
    inputs = {spec.name for spec in manifest.inputs} | {spec.input for spec in manifest.states}
    outputs = {spec.name for spec in manifest.outputs} | {spec.output for spec in manifest.states}
    if manifest.past_length:
        inputs.add(PAST_LENGTH)
    for what, expected, found in (("takes", inputs, takes), ("gives", outputs, gives)):
        if expected != found:
            raise BundleError(
                f"{bundle.root / path} {what} {', '.join(sorted(found))}, but the manifest says "
                f"{', '.join(sorted(expected))}. Export the bundle again."
            )
