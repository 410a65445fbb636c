"""What to measure, how long, and who takes part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from intaglio.errors import OptionError
from intaglio.runtime.engines import AUTO
from intaglio.runtime.graph_entry import MAIN

ROUNDS = 20  # at most: turns that the contestants take in each phase


@dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """What to measure, and how long.

    Attributes:
        contexts: tokens consumed before a step; None for 128, 1024 and 4096, as far as the model's
            positions reach.
        prompts: tokens of a prefill; None for 512.
        batch: rows.
        target: engine, or "auto".
        graph: the graph to measure; None for all that the bundles have in common.
        threads: threads within one operator; None leaves it to the engine.
        capacity: tokens that caches have room for at first; None for the session's default.
        warmup: milliseconds of uncounted calls before each measurement.
        duration: seconds that each measurement takes at least.
        iterations: calls that each measurement takes at least.
        percentiles: ranks of latency to report, above 0 and up to 100.
        ops: whether to trace operators, in another process.
        streams: sequences to step together through `intaglio.runtime.Streams`, at each context;
            None leaves that out.
    """

    contexts: Sequence[int] | None = None
    prompts: Sequence[int] | None = None
    batch: int = 1
    target: str = AUTO
    graph: str | None = None
    threads: int | None = None
    capacity: int | None = None
    warmup: float = 200
    duration: float = 3
    iterations: int = 10
    percentiles: Sequence[float] = (90, 95, 99)
    ops: bool = True
    streams: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            OptionError: if a number is out of its range.
        """
        least = {"batch": 1, "iterations": 1, "warmup": 0, "duration": 0, "threads": 1}
        for name, limit in {**least, "capacity": 1, "streams": 1}.items():
            value = getattr(self, name)
            if value is not None and not value >= limit:
                raise OptionError(f"{name} is {value}, should be at least {limit}.")
        for name, values in (("context", self.contexts), ("prompt length", self.prompts)):
            for value in values or ():
                if value < 1:
                    raise OptionError(f"A {name} is {value}, should be at least 1.")
        for rank in self.percentiles:
            if not 0 < rank <= 100:
                raise OptionError(f"A percentile is {rank:g}, should be above 0 and at most 100.")

    @property
    def rounds(self) -> int:
        """Turns that each contestant takes in a phase."""
        return min(ROUNDS, self.iterations)


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """What is measured in a process of its own.

    Attributes:
        name: as the report calls it.
        kind: "bundle" or "eager".
        child: the module to run; it answers `load`, `ready`, `run` and `footprint`.
        load: what `load` is given.
        about: facts for the report.
        graphs: those that take part.
    """

    name: str
    kind: str
    child: str
    load: Mapping[str, Any]
    about: Mapping[str, str] = field(default_factory=dict)
    graphs: tuple[str, ...] = (MAIN,)
