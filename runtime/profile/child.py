"""The process in which a bundle is profiled: `python -m intaglio.runtime.profile.child`.

A step is measured at exactly the context that was asked for: before each one, the session's count
of tokens is set back, which costs nothing and leaves caches and recurrent states as large and as
full as they were.  Their values are then those of another history, which no kernel's time depends
on.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import ProfileError
from intaglio.runtime import machine
from intaglio.runtime.bundle import Bundle, BundleGraph
from intaglio.runtime.child_worker import serve
from intaglio.runtime.engines import choose_target, open_tracer, preparing_target
from intaglio.runtime.graph_entry import MAIN, GraphEntry, TensorSpec
from intaglio.runtime.op_trace import Tracer
from intaglio.runtime.session import Session
from intaglio.runtime.step_inputs import Sizes, limit_in, shape_of
from intaglio.runtime.trt.engine_build import TARGET, read_built
from intaglio.state import BATCH, TIME, Layout, entries_of

from .stream_calls import StreamCalls

CHUNK = 512  # tokens consumed at once on the way to a context
OWN = 32  # entries along an axis of a condition, as of a source

Array = npt.NDArray[Any]
_clock = time.perf_counter


class BundleRunner:
    """The sessions of a bundle and the call that is measured next."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._session: Session
        self._steps = 0
        self._batch = 1
        self._prepares = False
        self._call: Callable[[], float]
        self._streams: StreamCalls | None = None
        self._tracer: Tracer | None = None

    def load(
        self,
        bundle: str,
        target: str,
        threads: int | None,
        capacity: int | None,
        graphs: Sequence[str] = (MAIN,),
        trace: bool = False,
    ) -> dict[str, Any]:
        """Open graphs of the bundle side by side, or one for tracing; seconds and bytes taken."""
        before, start = machine.resident(), _clock()
        opened = Bundle.open(bundle)
        for name in graphs:
            if trace:
                graph = opened.graph(name)
                chosen = choose_target(graph, target)
                self._tracer = open_tracer(graph, chosen, threads)
                session = Session.over(graph, chosen, self._tracer.backend, capacity=capacity)
            else:
                session = Session.load(
                    opened, target, graph=name, threads=threads, capacity=capacity
                )
            self._sessions[name] = session
        seconds = _clock() - start
        return {"seconds": seconds, "before": before, "resident": machine.resident()}

    def ready(self, kind: str, tokens: int, batch: int, graph: str = MAIN) -> None:
        """Get ready to measure calls of one kind.

        Args:
            kind: "prefill", `tokens` at once in the initial state; "step", one token after
                `tokens` others; "streams", a token of each of `batch` streams; or "prepare", a
                graph that makes states of conditions.
            tokens: length of the prompt, or of the context.
            batch: rows, or streams of one row each.
            graph: what is called.
        """
        if self._streams is not None:
            self._streams.close()
            self._streams = None
        self._batch, self._prepares = 1 if kind == "streams" else batch, kind == "prepare"
        self._session = self._sessions[graph]
        conditions = self._condition(self._batch)
        entry = self._session.entry
        if kind in ("prefill", "prepare"):
            self._take(inputs_for(entry, batch, tokens, tokens, self._own))
            self._call = self._prefill(tokens)
        elif kind == "streams":
            self._call = self._streams = StreamCalls(
                self._session,
                batch,
                tokens,
                lambda time: inputs_for(entry, 1, time, tokens, self._own),
                conditions,
            )
        else:
            self._advance(tokens)
            self._call = self._step(tokens)

    def _condition(self, batch: int) -> Mapping[str, Array] | None:
        """Give the session conditions for so many rows, where it takes some; which ones."""
        session = self._session
        if session.entry.prepare is None:
            return None
        prepare = session.bundle.graph(session.entry.prepare)
        own = own_sizes(prepare, preparing_target(session.graph, session.target))
        conditions = inputs_for(prepare.entry, batch, 1, 0, own)
        if session.state.batch != batch:
            session.state.reset()
            session.condition(conditions)
        return conditions

    @property
    def _own(self) -> Mapping[str, int]:
        """Sizes of free axes that conditions bring, or that what prepares them is measured at."""
        session = self._session
        if self._prepares:
            return own_sizes(session.graph, session.target)
        return session.state.own_sizes

    def run(self, seconds: float, iterations: int) -> list[float]:
        """Seconds of each call: at least `iterations` of them, and until `seconds` are over."""
        times: list[float] = []
        end = _clock() + seconds
        while len(times) < iterations or _clock() < end:
            times.append(self._call())
        return times

    def footprint(self) -> dict[str, Any]:
        """Bytes that the process and the states take by now, and the caches' room in tokens."""
        state = self._session.state
        if self._streams is not None:
            held = {"states": self._streams.states, "states_held": None, "capacity": None}
            return {"resident": machine.resident(), "peak": machine.peak(), **held}
        specs, carried = self._session.entry.states_of(self._session.target), state.carried
        return {
            "resident": machine.resident(),
            "peak": machine.peak(),
            "states": sum(
                spec.nbytes(carried.batch, carried.longest)
                for spec in specs
                if spec.layout is not Layout.PREPARED
            )
            + sum(buffer.nbytes for buffer in carried.prepared),
            "states_held": state.memory,
            "capacity": state.capacity,
        }

    def steps(self) -> int:
        """Calls of the session so far."""
        return self._steps

    def usual_sizes(self) -> dict[str, int]:
        """Sizes of the free axes that are neither rows nor tokens."""
        return usual_sizes(self._session.entry)

    def ceilings(self) -> dict[str, Any] | None:
        """What the device reaches at best, None where that is not measured."""
        found = None if self._tracer is None else self._tracer.ceilings()
        return None if found is None else asdict(found)

    def end_trace(self) -> dict[str, Any]:
        """Where the time of all calls went."""
        assert self._tracer is not None
        return self._tracer.end().to_json()

    def _take(self, inputs: Mapping[str, Array]) -> float:
        self._steps += 1
        if self._tracer is not None:
            self._tracer.begin()
        start = _clock()
        self._session.step(inputs)
        return _clock() - start

    def _prefill(self, tokens: int) -> Callable[[], float]:
        inputs = inputs_for(self._session.entry, self._batch, tokens, tokens, self._own)
        rows = list(range(self._batch))

        def call() -> float:
            self._session.state.reset(rows)
            return self._take(inputs)

        return call

    def _step(self, context: int) -> Callable[[], float]:
        inputs = inputs_for(self._session.entry, self._batch, 1, context, self._own)

        def call() -> float:
            carried = self._session.state.carried
            carried.past_length[:] = context
            carried.longest = context
            return self._take(inputs)

        return call

    def _advance(self, context: int) -> None:
        """Consume random tokens until each row has consumed `context`."""
        state = self._session.state
        if state.batch != self._batch or state.carried.longest > context:
            state.reset()
        while (done := state.carried.longest) < context:
            part = min(CHUNK, context - done)
            self._take(inputs_for(self._session.entry, self._batch, part, done, self._own))


def inputs_for(
    entry: GraphEntry, batch: int, time: int, seed: int, own: Sizes | None = None
) -> dict[str, Array]:
    """Inputs of a step: random token ids, random floats, masks that let everything through.

    `own` are sizes of further free axes, as those that conditions bring.
    An input that may be left out has the value that it would then have.  Token ids stay below the
    bound that the manifest gives, or else below the size of the first output's last axis, the
    vocabulary of a language model; further integer inputs are 0.

    Raises:
        ProfileError: if an input has a free dimension of no known size.
    """
    return dict(_inputs(entry, batch, time, np.random.default_rng(seed), own))


def _inputs(
    entry: GraphEntry, batch: int, time: int, random: np.random.Generator, own: Sizes | None
) -> Iterator[tuple[str, Array]]:
    last = entry.outputs[0].shape[-1:]
    vocabulary = next((size for size in last if isinstance(size, int) and size), 1)
    integers = [spec for spec in entry.inputs if spec.dtype.startswith(("int", "uint"))]
    bounds = {spec.name: spec.below for spec in integers if spec.below is not None}
    if not bounds:
        tokens = [spec.name for spec in integers if "mask" not in spec.name]
        bounds = dict.fromkeys(tokens[:1], vocabulary)
    sizes = {**usual_sizes(entry), **(own or {}), BATCH: batch, TIME: time}
    for spec in entry.inputs:
        shape = _shape(spec, sizes)
        if spec.default is not None:
            yield spec.name, np.full(shape, spec.default, spec.dtype)
        elif spec.name in bounds:
            most = np.minimum(limit_in(bounds[spec.name], sizes), np.iinfo(spec.dtype).max)
            yield spec.name, random.integers(0, most.astype(np.int64), shape).astype(spec.dtype)
        elif spec.dtype == "bool" or "mask" in spec.name:
            yield spec.name, np.ones(shape, spec.dtype)
        elif spec in integers:
            yield spec.name, np.zeros(shape, spec.dtype)
        else:
            yield spec.name, random.standard_normal(shape).astype(spec.dtype)


def usual_sizes(entry: GraphEntry) -> dict[str, int]:
    """Sizes of the free axes of a graph of whole inputs."""
    return {symbol: span[3] for symbol, span in entry.limits.sizes.items()}


def own_sizes(prepare: BundleGraph, target: str) -> dict[str, int]:
    """Sizes of the free axes of conditions: of an engine of TensorRT, those it is tuned for."""
    places = [
        (dim, spec.name, axis)
        for spec in prepare.entry.inputs
        for axis, dim in enumerate(spec.shape)
        if isinstance(dim, str) and dim not in (BATCH, TIME)
    ]
    found = {dim: OWN for dim, _, _ in places}
    built = read_built(prepare) if target == TARGET else None
    tuned = {} if built is None else built.profiles[-1].shapes
    return found | {dim: tuned[name][1][axis] for dim, name, axis in places if name in tuned}


def _shape(spec: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    free = [d for d in spec.shape if isinstance(d, str) and d not in sizes and not entries_of(d)]
    if free:
        raise ProfileError(
            f"The input {spec.name!r} has the free dimension {free[0]!r}; only batch and time can "
            "be chosen. Export the bundle with that dimension fixed."
        )
    return shape_of(spec, sizes)


def main() -> None:
    """Serve the parent."""
    runner = BundleRunner()
    names = ("load", "ready", "run", "footprint", "steps", "usual_sizes", "ceilings", "end_trace")
    serve({name: getattr(runner, name) for name in names})


if __name__ == "__main__":
    main()
