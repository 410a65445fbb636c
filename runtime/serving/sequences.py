"""What a server's sequences ask of streams: begin, go on, resume, end, each told by an id.

Knows nothing of any server's library: a request comes as a `SequenceCall`, and its answer goes to a
function.  Whatever goes wrong is the answer of that one call.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intaglio.errors import IntaglioError, StateError
from intaglio.runtime.arrays import Array
from intaglio.runtime.ragged import index_of
from intaglio.runtime.streaming.handle import StreamHandle
from intaglio.runtime.streaming.streams import Streams
from intaglio.state import time_of

PAST, SAVED = "past_length", "saved_length"  # outputs: tokens consumed, and safe in the folder

Answer = Callable[[Mapping[str, Array] | None, str | None], None]


@dataclass(frozen=True, kw_only=True)
class SequenceCall:
    """A request of a sequence.

    Attributes:
        id: of the sequence.
        inputs: tokens, as `Session.step` takes them, of one row.
        conditions: what holds for the whole sequence, with the first request.
        start: whether it is the first request.
        end: whether it is the last.
        resume: whether the first request goes on with what is saved of the sequence.
        past: the number of the first token, where the client tells it: tokens that the stream has
            already are left out, and a gap is refused.
        answer: takes the outputs, or what is wrong.
    """

    id: str
    inputs: Mapping[str, Array]
    answer: Answer
    conditions: Mapping[str, Array] = field(default_factory=dict)
    start: bool = False
    end: bool = False
    resume: bool = False
    past: int | None = None


class Sequences:
    """Sequences by id, each a stream.

    Those that were not asked for `idle` seconds are parked in the folder of the streams, or ended
    where there is none.
    """

    def __init__(self, streams: Streams, idle: float) -> None:
        """Serve sequences with `streams`, which this closes."""
        self._streams = streams
        self._idle = idle
        self._lock = threading.Lock()
        self._open: dict[str, StreamHandle] = {}
        self._used: dict[str, float] = {}
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._expire, daemon=True)
        self._thread.start()

    def take(self, call: SequenceCall) -> None:
        """Answer a call, now or once its outputs are there; any thread may call this."""
        try:
            stream = self._begin(call) if call.start else self._known(call.id)
            inputs = self._new_tokens(call, stream)
            future = stream.feed(inputs, timeout=0)
        except IntaglioError as error:
            if call.end:
                self._finish(call.id)
            call.answer(None, str(error))
            return
        future.add_done_callback(lambda done: self._done(call, stream, done))

    def close(self) -> None:
        """End; what the streams keep in a folder can be resumed."""
        self._ends.set()
        self._streams.close()

    def _begin(self, call: SequenceCall) -> StreamHandle:
        self._finish(call.id, keep=call.resume)
        if call.resume:
            if call.conditions:
                raise StateError(
                    f"The sequence {call.id} is resumed with the conditions that were saved; leave "
                    "them out."
                )
            stream = self._streams.resume(call.id)
        else:
            self._streams.forget(call.id)
            stream = self._streams.open(call.id, conditions=call.conditions or None)
        with self._lock:
            self._open[call.id] = stream
            self._used[call.id] = time.monotonic()
        return stream

    def _known(self, name: str) -> StreamHandle:
        with self._lock:
            if name not in self._open:
                raise StateError(
                    f"There is no sequence {name}: it ended, was idle for too long, or never "
                    "began. Start it, or resume what was saved of it."
                )
            self._used[name] = time.monotonic()
            return self._open[name]

    def _new_tokens(self, call: SequenceCall, stream: StreamHandle) -> Mapping[str, Array]:
        """The inputs of a call without the tokens that its stream has had."""
        if call.past is None or call.past == stream.past_length:
            return call.inputs
        specs = self._streams.session.entry.inputs
        along = [(spec, time_of(spec.shape)) for spec in specs if spec.name in call.inputs]
        time_axis = next(((spec, found) for spec, found in along if found is not None), None)
        held, ends = stream.past_length, call.past
        if time_axis is not None:
            spec, (axis, each) = time_axis
            shape = call.inputs[spec.name].shape
            ends += shape[axis] // each if axis < len(shape) else 0
        if not call.past < held < ends:
            raise StateError(
                f"The sequence {call.id} holds {held} tokens, and the request has those from "
                f"{call.past} to {ends}. Send what follows on {held}."
            )
        window = slice(held - call.past, ends - call.past)
        return {
            spec.name: call.inputs[spec.name][index_of(spec, slice(None), window)]
            for spec in specs
            if spec.name in call.inputs
        }

    def _done(self, call: SequenceCall, stream: StreamHandle, done: "Future[Any]") -> None:
        outputs: dict[str, Array] | None = None
        fault: str | None = None
        try:
            counts = {PAST: stream.past_length, SAVED: stream.saved_length or 0}
            own = {name: np.array([[count]], np.int64) for name, count in counts.items()}
            outputs = {**done.result(), **own}
        except (IntaglioError, CancelledError) as error:
            fault = str(error) or "The request was cancelled."
        if call.end:
            self._finish(call.id)
        call.answer(outputs, fault)

    def _finish(self, name: str, *, keep: bool = False) -> None:
        with self._lock:
            stream = self._open.pop(name, None)
            self._used.pop(name, None)
        if stream is not None:
            self._let_go(stream, keep=keep)

    def _let_go(self, stream: StreamHandle, *, keep: bool) -> None:
        if keep and self._streams.folder is not None:
            stream.park()
        else:
            stream.close()

    def _expire(self) -> None:
        while not self._ends.wait(self._idle / 4):
            now = time.monotonic()
            with self._lock:
                late = [name for name, used in self._used.items() if now - used > self._idle]
                gone = [self._open.pop(name) for name in late]
                for name in late:
                    del self._used[name]
            for stream in gone:
                try:
                    self._let_go(stream, keep=True)
                except IntaglioError:  # it cannot be saved, or all is closed: nobody waits for it
                    continue
