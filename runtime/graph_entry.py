"""What a manifest says of one graph of its bundle: how it is fed, and what runs it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from intaglio.graphs import Generation
from intaglio.state import StateSpec

MAIN = "main"  # the graph that a session steps unless it is told otherwise
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"  # `TargetEntry.parity`

SizeRange = tuple[int, int | None, int, int]


Bound = int | str | None
Below = int | str | tuple[Bound, ...] | tuple[tuple[Bound], ...]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the source; `dtype` is numpy's name, `shape` ints and symbols.

    An input with a `default` may be left out of a step: it is then filled with that.
    `below` bounds an input that picks rows of a table, as token ids do: from 0 to below it; it is
    the name of an axis where it picks from that.  Where columns of the last axis go to different
    tables, there is one for each, None where a column picks nothing; each is in a tuple by itself
    where they are the rows of a matrix.  The shape of an output may have arithmetic of symbols.
    `tolerance` is of an output that tells how a loop ended: above it, the loop did not converge.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    default: float | None = None
    below: Below | None = None
    tolerance: float | None = None

    @property
    def entries(self) -> int | None:
        """How many entries a value picks from, where that is one number."""
        return self.below if isinstance(self.below, int) else None


@dataclass(frozen=True, kw_only=True)
class TargetEntry:
    """What one engine runs: the graph at `path`, its external tensors in the files `data`.

    Paths are relative to the bundle, and so are the locations of external tensors in the graph.
    `parity` is "passed", "failed", or "not run" with the reason in brackets; `dtype` is what the
    graph computes in and keeps caches in, as numpy calls it.
    """

    path: str
    opset: int
    data: tuple[str, ...] = ()
    parity: str = NOT_RUN
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The tokens that the position tables allow, and a fixed batch; None where free.

    `sizes` holds the least, the most (None for any), the step and a usual size of each free axis
    of a graph of whole inputs, `ends` the tokens after which a step may end, where tokens see
    later ones up to there; empty where any may.
    """

    max_context: int | None = None
    batch: int | None = None
    sizes: Mapping[str, SizeRange] = field(default_factory=dict)
    ends: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        entry: dict[str, Any] = {"max_context": self.max_context, "batch": self.batch}
        spans = {symbol: list(span) for symbol, span in self.sizes.items()}
        entry |= {"ends": list(self.ends)} if self.ends else {}
        return {**entry, "sizes": spans} if spans else entry

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Back from a manifest's entry."""
        spans = {
            symbol: (least, most, step, usual)
            for symbol, (least, most, step, usual) in entry.get("sizes", {}).items()
        }
        return cls(
            max_context=entry["max_context"],
            batch=entry["batch"],
            sizes=spans,
            ends=tuple(entry.get("ends", ())),
        )


@dataclass(frozen=True, kw_only=True)
class GraphEntry:
    """One graph of a bundle.

    `inputs` and `outputs` are the source's own, without states and without past_length, which
    `past_length` says whether the graph takes.  `whole` says that each call takes whole inputs, as
    of a picture or an encoder, and nothing is carried to the next.  `passes` holds the records of
    the passes in order, `parity` what the last verification found.

    `conditions` are inputs that are given once for a sequence and have no time.  The graph of the
    bundle that `prepare` names takes them, and its outputs become the states of the layout
    ``prepared`` whose inputs have their names: no step changes these.

    `derived` says that a pass made the graph of another one, so that no source has it.
    `generates` says how this graph and others of the bundle make a whole from conditions alone.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...]
    past_length: bool
    targets: Mapping[str, TargetEntry]
    conditions: tuple[TensorSpec, ...] = ()
    prepare: str | None = None
    generates: Generation | None = None
    limits: Limits = field(default_factory=Limits)
    whole: bool = False
    derived: bool = False
    passes: tuple[Mapping[str, Any], ...] = ()
    parity: Mapping[str, Any] = field(default_factory=dict)

    def states_of(self, target: str) -> tuple[StateSpec, ...]:
        """The states as the graph of a target has them."""
        return tuple(spec.stored_in(self.targets[target].dtype) for spec in self.states)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        plan = {} if self.generates is None else {"generates": asdict(self.generates)}
        return {
            **plan,
            "inputs": [_tensor_to_json(spec) for spec in self.inputs],
            "outputs": [_tensor_to_json(spec) for spec in self.outputs],
            "states": [spec.to_json() for spec in self.states],
            "conditions": [_tensor_to_json(spec) for spec in self.conditions],
            "prepare": self.prepare,
            "past_length": self.past_length,
            "whole": self.whole,
            **({"derived": True} if self.derived else {}),
            "limits": self.limits.to_json(),
            "targets": {
                name: {**asdict(target), "data": list(target.data)}
                for name, target in self.targets.items()
            },
            "passes": list(self.passes),
            "parity": dict(self.parity),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Back from JSON values that fit the schema."""
        return cls(
            inputs=tuple(_tensor_from_json(spec) for spec in entry["inputs"]),
            outputs=tuple(_tensor_from_json(spec) for spec in entry["outputs"]),
            states=tuple(StateSpec.from_json(spec) for spec in entry["states"]),
            conditions=tuple(_tensor_from_json(spec) for spec in entry.get("conditions", ())),
            prepare=entry.get("prepare"),
            generates=Generation(**entry["generates"]) if "generates" in entry else None,
            past_length=entry["past_length"],
            whole=entry.get("whole", False),
            derived=entry.get("derived", False),
            limits=Limits.from_json(entry["limits"]),
            targets={
                key: TargetEntry(**{**target, "data": tuple(target["data"])})
                for key, target in entry["targets"].items()
            },
            passes=tuple(entry["passes"]),
            parity=entry["parity"],
        )


def _tensor_to_json(spec: TensorSpec) -> dict[str, Any]:
    entry = {**asdict(spec), "shape": list(spec.shape)}
    if isinstance(spec.below, tuple):
        entry["below"] = [list(b) if isinstance(b, tuple) else b for b in spec.below]
    return {key: value for key, value in entry.items() if value is not None}


def _tensor_from_json(entry: Mapping[str, Any]) -> TensorSpec:
    below = entry.get("below")
    if isinstance(below, list):
        below = tuple(tuple(b) if isinstance(b, list) else b for b in below)
    return TensorSpec(**{**entry, "shape": tuple(entry["shape"]), "below": below})
