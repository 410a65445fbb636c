"""Steps of a session that are interrupted at random: its state stays one of two, memory flat.

    python benchmarks/interrupts.py [--quick] [--json]

A timer sends signals at random moments, whose handler raises.  After each the session is to be as
it was before the step or as it is after it: the tokens that it has consumed say which, and the
next output is compared with that of a session that nothing interrupts.
"""

import gc
import os
import resource
import signal
import tempfile
from pathlib import Path
from random import Random
from types import FrameType

import numpy as np
import torch
from evidence import Row, run

import intaglio
from intaglio import models
from intaglio.models import gla
from intaglio.runtime import Session

STEPS, QUICK = 1_000_000, 20_000
EACH = 64  # steps after which both sessions begin anew
SECONDS = 0.001  # at most, until the next signal
GROWN = 32  # MiB that memory may grow by, after a tenth of the steps


class Struck(Exception):  # noqa: N818  no error, a signal
    """What the handler of the signal raises."""


def measure(quick: bool) -> list[Row]:
    """How many steps were struck, how many sessions were wrong after it, and memory."""
    steps = QUICK if quick else STEPS
    with tempfile.TemporaryDirectory() as folder:
        session, other = _sessions(Path(folder))
        random, struck, wrong, failed = Random(0), 0, 0, 0
        early, armed = 0.0, False

        def strike(_signal: int, _frame: FrameType | None) -> None:
            if armed:  # one that came late is not of the step that it was meant for
                raise Struck

        signal.signal(signal.SIGALRM, strike)
        token = np.zeros((1, 1), np.int64)
        for step in range(steps):
            if step % EACH == 0:
                session.state.reset()
                other.state.reset()
                consumed = 0
            token[0, 0] = step * 7 % 16
            got = None
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, random.random() * SECONDS)
                got = session.step({"input_ids": token})
            except Struck:
                struck += 1
            except Exception:  # noqa: BLE001  any other error is a fault
                failed += 1
            finally:
                armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            wanted = other.step({"input_ids": token})
            now = int(session.state.past_length[0]) if len(session.state.past_length) else 0
            if now == consumed and got is None:
                got = session.step({"input_ids": token})
                now = int(session.state.past_length[0])
            consumed += 1
            wrong += now != consumed
            if got is not None:
                wrong += any(not np.array_equal(got[n], wanted[n]) for n in wanted)
            if step == steps // 10:
                gc.collect()
                early = _memory()
    grown = _memory() - early
    return [
        Row(name="steps", value=steps, unit="steps"),
        Row(name="struck within a step", value=struck, unit="steps"),
        Row(name="wrong after it", value=wrong, unit="steps", target="0", holds=wrong == 0),
        Row(name="other errors", value=failed, unit="steps", target="0", holds=failed == 0),
        Row(
            name="memory, from a tenth of the steps on",
            value=grown,
            unit="MiB",
            target=f"at most {GROWN}",
            holds=grown <= GROWN,
            note=f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB",
        ),
    ]


def _sessions(folder: Path) -> tuple[Session, Session]:
    torch.manual_seed(0)
    config = gla.Config(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, key_size=8
    )
    module = models.find("gla").build(config)
    models.save(folder / "model.pt", "gla", config, module)
    intaglio.export(folder / "model.pt", folder / "bundle", verify=False, portable=False)
    return (
        Session.load(folder / "bundle", threads=1),
        Session.load(folder / "bundle", threads=1),
    )


def _memory() -> float:
    """MiB that are resident."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


if __name__ == "__main__":
    run(__doc__, measure)
