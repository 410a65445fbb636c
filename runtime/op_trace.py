"""Where the time of a call goes, as the profiler of an engine tells it, whatever the engine."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Protocol, Self

from intaglio.runtime.backend import Backend
from intaglio.runtime.work import Ceilings, NodeWork


@dataclass(frozen=True, kw_only=True)
class TracedOp:
    """What an engine runs as one.

    Attributes:
        node: as the engine calls it.
        op: the operator.
        module: path of the module of the source that it came from.
        nodes: nodes of the bundle's graph that it computes; none where that is not known.
        fused: whether the engine made it, of several nodes or of none.
    """

    node: str
    op: str
    module: str
    nodes: tuple[str, ...] = ()
    fused: bool = False


@dataclass(frozen=True, kw_only=True)
class EngineCall:
    """One call of a session.

    Attributes:
        times: milliseconds of what ran, by its place in `Trace.ops`.
        total: milliseconds within the engine, what lies between them included.
        works: what each had to do, by the same places, where the engine tells of it.
        arena_held: most bytes that the engine's arena held, None where it does not tell.
        arena_used: most bytes of them in use at one time.
    """

    times: Mapping[int, float]
    total: float
    works: Mapping[int, NodeWork] = field(default_factory=dict)
    arena_held: int | None = None
    arena_used: int | None = None


@dataclass(frozen=True, kw_only=True)
class Trace:
    """All calls since an engine was opened for tracing."""

    ops: Sequence[TracedOp]
    calls: Sequence[EngineCall]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "ops": [vars(op) for op in self.ops],
            "calls": [
                {
                    **vars(call),
                    "times": list(call.times.items()),
                    "works": [(place, astuple(work)) for place, work in call.works.items()],
                }
                for call in self.calls
            ],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` wrote, also after it went through JSON."""
        return cls(
            ops=[TracedOp(**{**op, "nodes": tuple(op["nodes"])}) for op in values["ops"]],
            calls=[
                EngineCall(
                    **{
                        **call,
                        "times": dict(call["times"]),
                        "works": {place: NodeWork(*work) for place, work in call["works"]},
                    }
                )
                for call in values["calls"]
            ],
        )


class Tracer(Protocol):
    """A backend whose engine is traced.

    Attributes:
        backend: for the session whose calls are traced.
    """

    @property
    def backend(self) -> Backend:
        """What the session runs on."""

    def begin(self) -> None:
        """Let a call of the session begin, which may be several of the engine."""

    def ceilings(self) -> Ceilings | None:
        """What the device reaches at best, None where that is not measured."""

    def end(self) -> Trace:
        """Stop tracing; what was traced.

        Raises:
            ProfileError: if the engine tells nothing that can be read.
        """
