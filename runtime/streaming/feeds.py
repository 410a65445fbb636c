"""What a stream was fed, taken in parts, and what has come of it so far."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from intaglio.runtime.arrays import Array, dtype_of
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.prepared_conditions import Conditions
from intaglio.runtime.ragged import index_of
from intaglio.runtime.step_inputs import Sizes, shape_of
from intaglio.state import TIME

from .bank import Bank

Outputs = dict[str, Array]
_ROWS = slice(None)


class Portion:
    """Tokens for one stream, all or a part of which a step takes.

    Attributes:
        tokens: how many there are.
        done: how many have been taken.
        future: of the outputs of all of them.
        mark: where the stream was before the first of several parts.
        begun: whether it can be cancelled no more.
    """

    def __init__(self, entry: GraphEntry, arrays: Mapping[str, Array], sizes: Sizes) -> None:
        """Take `arrays`, checked inputs of one row in memory that nobody else writes."""
        self._entry, self._arrays, self._sizes = entry, arrays, sizes
        self.tokens = sizes[TIME]
        self.done = 0
        self.future: Future[Outputs] = Future()
        self.mark: Any = None
        self.begun = False
        self._results: Outputs = {}

    @property
    def left(self) -> int:
        """How many tokens have not been taken."""
        return self.tokens - self.done

    def begin(self) -> bool:
        """Whether it is still wanted: from then on it cannot be cancelled."""
        self.begun = self.begun or self.future.set_running_or_notify_cancel()
        return self.begun

    def part(self, time: int) -> Mapping[str, Array]:
        """The inputs of the next `time` tokens."""
        if time == self.tokens:
            return self._arrays
        window = slice(self.done, self.done + time)
        return {
            s.name: self._arrays[s.name][index_of(s, _ROWS, window)] for s in self._entry.inputs
        }

    def add(self, time: int, outputs: Outputs) -> Outputs | None:
        """Note the outputs of the next `time` tokens; return those of all once none are left."""
        if time == self.tokens:
            self._results = outputs
        else:
            window = slice(self.done, self.done + time)
            for spec in self._entry.outputs:
                if spec.name not in self._results:
                    shape = shape_of(spec, self._sizes)
                    whole = outputs[spec.name].__class__(shape, dtype_of(spec.dtype, spec.name))
                    self._results[spec.name] = whole
                self._results[spec.name][index_of(spec, _ROWS, window)] = outputs[spec.name]
        self.done += time
        return None if self.left else self._results


class Record:
    """A stream as the scheduler knows it.

    Attributes:
        name: that it is saved under.
        conditions: what holds for its whole sequence, None where the graph takes no conditions.
        kind: what streams have in common that may share a call of the engine.
        feeds: what it was fed and has not taken, in order.
        queued: their tokens.
        lane: which of the lanes steps it.
        bank: where it has a row, None where it is saved or has not begun.
        past: tokens that it has consumed.
        saved: how many it had when it was last saved, None where it was not.
        served: calls since it was given its row.
        fault: why it cannot go on.
        ended: whether no more may be fed.
    """

    def __init__(self, name: str, conditions: Conditions | None) -> None:
        self.name = name
        self.feeds: deque[Portion] = deque()
        self.queued = self.lane = 0
        self.bank: Bank | None = None
        self.past = 0
        self.saved: int | None = None
        self.served = 0
        self.fault: str | None = None
        self.ended = False
        self.condition(conditions)

    def condition(self, conditions: Conditions | None) -> None:
        """Let `conditions` hold for it."""
        self.conditions = conditions
        self.kind: Any = None
        if conditions is not None:
            shared = [
                (name, array.tobytes())
                for name, array in sorted(conditions.states.items())
                if name not in conditions.axes
            ]
            self.kind = tuple(sorted(conditions.own_sizes.items())), tuple(shared)
