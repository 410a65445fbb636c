"""Sequences by id: idle ones are let go, and a client that vanishes leaves nothing behind."""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.runtime.serving.sequences import SequenceCall, Sequences
from intaglio.runtime.streaming.streams import Streams


def ask(sequences: Sequences, **options: Any) -> tuple[Any, str | None]:
    """The answer to a call."""
    found: list[Any] = []
    there = threading.Event()

    def answer(outputs: Any, error: str | None) -> None:
        found.extend([outputs, error])
        there.set()

    sequences.take(
        SequenceCall(id="a", answer=answer, **{"inputs": {"input_ids": [[1, 2]]}, **options})
    )
    assert there.wait(60)
    return found[0], found[1]


def test_an_idle_sequence_is_parked_and_resumed(served_bundle: Path, tmp_path: Path) -> None:
    """A client that vanishes holds no row; what it had is there when it comes back."""
    streams = Streams(served_bundle, 2, threads=1, store=tmp_path)
    sequences = Sequences(streams, idle=0.2)
    ask(sequences, start=True)
    for _ in range(300):
        if not streams.stats.open:
            break
        threading.Event().wait(0.02)
    assert (streams.stats.open, streams.saved()) == (0, ["a"])
    assert "There is no sequence a" in str(ask(sequences)[1])
    outputs, error = ask(sequences, start=True, resume=True)
    assert (error, outputs["past_length"].tolist()) == (None, [[4]])
    sequences.close()


def test_a_start_without_resume_begins_anew(served_bundle: Path, tmp_path: Path) -> None:
    """Whether the sequence is open or saved; what is sent twice is taken once."""
    streams = Streams(served_bundle, 2, threads=1, store=tmp_path)
    sequences = Sequences(streams, idle=60)
    for _ in range(2):
        assert ask(sequences, start=True)[0]["past_length"].tolist() == [[2]]
    outputs, _ = ask(sequences, inputs={"input_ids": np.array([[2, 3]])}, past=1)
    assert outputs["logits"].shape == (1, 1, 23)
    assert "holds 3 tokens" in str(ask(sequences, inputs={"input_ids": np.array([[2]])}, past=2)[1])
    assert ask(sequences, start=True, resume=True)[0]["past_length"].tolist() == [[5]]
    assert "no saved stream" in str(
        [ask(sequences, end=True), ask(sequences, start=True, resume=True)]
    )
    sequences.close()
