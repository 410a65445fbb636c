"""What a manifest claims of its graph, held to the source: no claim makes a verification easier."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import BundleError, ParityError
from intaglio.exporter.sources.source import Source
from intaglio.ops import OPS
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.session import Session
from intaglio.state import Layout, StateSpec

from .caught_calls import Key
from .follow import start_over
from .reference import Reference, reference

ALIKE = 1e-2  # of a state and a call of the source: what they differ by if they are the same
SOUGHT = 8  # tokens after which they are compared
PORTS = ("key", "value", *(state.port for op in OPS for state in op.signature.states))

Arrays = Mapping[str, npt.NDArray[Any]]


def check_claims(entry: GraphEntry, source: Source) -> None:
    """Refuse a manifest that contradicts the source about how its graph is fed.

    Raises:
        BundleError: if it has other inputs, or other values for those left out, or goes on
            from step to step where the source takes whole sequences.
    """
    carried = {state.input for state in source.states}
    taken = {name: axes for name, axes in source.dynamic.items() if name not in carried}
    same_names(entry, "inputs", taken)
    if source.whole and not entry.whole:  # any source may be exported whole, if one asks for it
        raise BundleError(
            "The manifest says that the bundle takes one token after the other, and the source "
            "takes whole sequences. Export it again."
        )
    for spec in entry.inputs:
        own = source.defaults.get(spec.name)
        if spec.default != own:
            raise BundleError(
                f"The manifest fills the input {spec.name!r} with {spec.default} where it is left "
                f"out, the source with {own}. Export the bundle again."
            )


def same_names(entry: GraphEntry, what: str, names: Mapping[str, Any]) -> None:
    """Refuse a bundle whose `what`, inputs or outputs, are not called as those of the source.

    Raises:
        BundleError: if they are not.
    """
    own = [spec.name for spec in getattr(entry, what)]
    own += [spec.name for spec in entry.conditions if what == "inputs"]
    if set(own) != set(names):
        raise BundleError(
            f"The bundle has the {what} {', '.join(own)}, the source {', '.join(names)}. "
            "Verify it against the checkpoint that its manifest names."
        )


def tokens_to_run(entry: GraphEntry, source: Source, steps: int) -> int:
    """`steps`, or fewer where the model's context ends: a manifest alone may not say that it does.

    Raises:
        BundleError: if it does, and the source takes more tokens.
    """
    claimed = entry.limits.max_context
    if claimed is None or claimed >= steps:
        return steps
    if _takes(source, claimed + 1):
        raise BundleError(
            f"The manifest says that the bundle takes at most {claimed} tokens, and the source "
            f"takes more: of {steps} steps only {claimed} can be compared. Where that is what you "
            f"want, ask for --steps {claimed}"
        )
    return claimed


def _takes(source: Source, tokens: int) -> bool:
    """Whether the source computes a sequence of so many tokens."""
    try:
        reference(source, source.random_inputs(1, tokens, 0), states=False)
    except Exception:  # noqa: BLE001  each model refuses more than its tables in its own way
        return False
    return True


def owned(session: Session, inputs: Arrays, tokens: int, wanted: Reference) -> list[StateSpec]:
    """The states of a session, each with the call of the source that it is.

    A manifest says which.  Where the source has no such call, the calls that no other state claims
    are compared with what the state holds, so that a name that leads nowhere hides nothing.

    Args:
        session: in any state; it is reset.
        inputs: of `tokens` tokens.
        tokens: after which `wanted` is asked.
        wanted: what the source makes of a sequence that begins with `inputs`.
    """
    specs = list(session.entry.states)
    changing = [spec for spec in specs if spec.layout is not Layout.PREPARED]
    lost = [spec for spec in changing if wanted.state(spec, 1) is None]
    claimed = {(_key(spec), spec.port) for spec in specs if spec not in lost}
    free = [
        (key, port)
        for key in wanted.calls
        for port in dict.fromkeys((*PORTS, *(spec.port for spec in lost)))
        if (key, port) not in claimed
    ]
    if not lost or not free:
        return specs
    session.step(start_over(session, inputs))
    held = session.state.save().arrays
    for spec in lost:
        found = [(_distance(wanted, s, tokens, held[spec.input]), s) for s in _as(spec, free)]
        error, nearest = min(found, key=lambda pair: pair[0], default=(np.inf, spec))
        if error <= ALIKE or (np.isfinite(error) and nearest.op == spec.op):
            specs[specs.index(spec)] = nearest
            free = [place for place in free if place != (_key(nearest), nearest.port)]
    return specs


def _key(spec: StateSpec) -> Key:
    return spec.module, spec.op, spec.call


def _as(spec: StateSpec, places: Sequence[tuple[Key, str]]) -> list[StateSpec]:
    """`spec` as each of `places` would have it."""
    return [
        replace(spec, module=module, op=op, call=call, port=port)
        for (module, op, call), port in places
    ]


def _distance(wanted: Reference, spec: StateSpec, tokens: int, held: npt.NDArray[Any]) -> float:
    """How far what a state holds is from a call of the source; infinity if it cannot be that."""
    try:
        value = wanted.state(spec, tokens)
    except ParityError:
        return float("inf")
    if value is None or value.shape != held.shape or not value.size:
        return float("inf")
    scale = max(float(np.abs(value).max()), 1e-30)
    return float(np.abs(held - value).max()) / scale
