"""What a pass is, what it promises, and what it reports."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, dataclass_transform

import numpy.typing as npt
import onnx_ir as ir

from intaglio.jobs import Where
from intaglio.state import StateSpec

from .calibration import Calibration

Progress = Callable[[str, float | None], None]  # what is being done, and the part of it done


@dataclass(frozen=True, kw_only=True)
class OwnState:
    """A state that a source carries itself: an input of each step and an output of it.

    `initial` is the value before the first step: a number, or an array of one row.
    """

    input: str
    output: str
    initial: float | npt.NDArray[Any] = 0.0


@dataclass
class Context:
    """What a pipeline carries from pass to pass beside the graph.

    `states` is filled by statefulize; `prepare` is the graph that hoist split off, None without
    conditions; `max_context` is the largest number of tokens that the
    graph's position tables allow, None without one; `ends` the tokens after which a call may end,
    empty where any may; `batch` is the fixed batch size, None when
    it is free; `tokens` are those of a usual call, all rows together, None where no shapes were
    asked for; `defaults` holds the value of each input that may be left out; `own` lists the
    states that the source carries itself.

    `beside` holds further graphs of whole inputs that passes make of the one they are given, by the
    names that they have in the bundle.

    `draw` gives inputs of the source for sizes and a seed, where it is known; `trials` the sizes at
    which a graph of whole inputs is checked, and `spans` the sizes that its axes take.

    Calibrated passes learn from `calibration`, refine through `module` (the source's PyTorch
    module, where it has one), keep what they have finished in the folder `work`, solve layers that
    do not depend on each other as jobs `where` these run, and tell `progress` how far they are.
    Where the bundle has further graphs, `modules` are the paths of all modules: what is asked of
    one that this graph does not use is asked of another graph.
    """

    states: list[StateSpec] = field(default_factory=list)
    prepare: ir.Model | None = None
    beside: dict[str, ir.Model] = field(default_factory=dict)
    max_context: int | None = None
    ends: tuple[int, ...] = ()
    batch: int | None = None
    tokens: int | None = None
    defaults: Mapping[str, float] = field(default_factory=dict)
    own: Sequence[OwnState] = ()
    draw: Callable[[Mapping[str, int], int], Mapping[str, Any]] | None = None
    trials: Sequence[Mapping[str, int]] = ()
    spans: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    module: Any = None
    work: Path | None = None
    where: Where = field(default_factory=Where)
    modules: Sequence[str] = ()
    progress: Progress | None = None

    def drawn(self, sizes: Mapping[str, int], seed: int) -> dict[str, Any]:
        """Inputs of `sizes` as the source takes them; nothing where that is not known."""
        return {} if self.draw is None else dict(self.draw(sizes, seed))

    def limit_context(self, tokens: int) -> None:
        """Lower `max_context` to `tokens` unless it is lower already."""
        self.max_context = tokens if self.max_context is None else min(self.max_context, tokens)

    def limit_ends(self, ends: Sequence[int]) -> None:
        """Let calls end after `ends` alone, of those where they may end already."""
        self.ends = tuple(end for end in ends if not self.ends or end in self.ends)


@dataclass(frozen=True, kw_only=True)
class PassResult:
    """What one run of a pass did: `notes` for people, `details` (JSON values) for reports.

    `advice` is what the user should hear at once: a choice that another one beats.
    """

    changed: bool
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    advice: Sequence[str] = ()


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Pass:
    """One graph rewrite, in place.  Its fields are its options; its base class, its promise.

    A pass that the graph alone decides defines `rewrite`; one that reads or fills what a pipeline
    carries beside the graph defines `run`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    for_tokens: ClassVar[bool] = False
    """Whether it prepares a graph for steps: no use to whole graphs or those that step already."""

    def __init_subclass__(cls) -> None:
        """Make each pass a frozen dataclass, named after its class."""
        super().__init_subclass__()
        dataclass(frozen=True, kw_only=True)(cls)
        cls.name = "".join("-" + c.lower() if c.isupper() else c for c in cls.__name__)[1:]
        cls.summary = (cls.__doc__ or "").strip().partition("\n")[0]

    def check_options(self, *, data: bool) -> None:
        """Refuse what no graph can be given; `data` says whether there is some to learn from.

        An export asks before it loads anything, and so does whoever runs the pass by itself.

        Raises:
            PassError: naming the option.
        """

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Rewrite `model`; raise `PassError` where it cannot, leaving nothing half-done to use."""
        return self.rewrite(model)

    def rewrite(self, model: ir.Model) -> PassResult:
        """The same for a pass that needs no context."""
        raise NotImplementedError(f"{type(self).__name__} defines neither rewrite nor run")


class Exact(Pass):
    """Every output keeps its value for every input: `--check-passes` holds it to that."""


class Calibrated(Pass):
    """Outputs may move; the pass reports the error it introduced."""


class Lower(Pass):
    """The same function in the words of one target; checked like an exact pass."""
