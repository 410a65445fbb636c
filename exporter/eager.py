"""A source in PyTorch, eager, as it is measured beside its bundle; the child process, too.

A prefill is one forward pass over the prompt.  The module in training form has no cache, so a step
at a context of n tokens is a forward pass over n + 1: that is what generating a token with it
costs.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from intaglio.runtime import machine
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.profile_report import EAGER
from intaglio.runtime.profile_settings import Contestant
from intaglio.runtime.worker import serve

from .load import load_source
from .source import Source
from .verify import named_by

SEED = 0

_clock = time.perf_counter


def contestant(
    source: Path, bundle: Bundle, threads: int | None, options: Mapping[str, Any]
) -> Contestant:
    """The source as a contestant.

    Args:
        source: a path as for `load_source`.
        bundle: what was exported from it; model and config are its own where `options` name none.
        threads: threads that PyTorch may use; None leaves it to PyTorch.
        options: of `load_source`, by name; what is in files as paths.
    """
    given = {"model": None, "config": None, **options}
    if given["model"] is None and given["config"] is None:
        given["model"], given["config"] = named_by(bundle.manifest)
    return Contestant(
        name=f"PyTorch {torch.__version__.partition('+')[0]}, eager",
        kind=EAGER,
        child="intaglio.exporter.eager",
        load={"path": str(source), "threads": threads, "options": _plain(given)},
        about={"source": source.name, "step": "a forward pass over the context and the token"},
    )


def _plain(value: Any) -> Any:
    """As JSON has it: paths as texts."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, os.PathLike) else value


class Runner:
    """A module and the call that is measured next."""

    def __init__(self) -> None:
        self._source: Source
        self._call: Callable[[], object]

    def load(self, path: str, threads: int | None, options: dict[str, Any]) -> dict[str, Any]:
        """Load the source; seconds and bytes that it took."""
        if threads is not None:
            torch.set_num_threads(threads)
        before, start = machine.resident(), _clock()
        self._source = load_source(path, **options)
        return {
            "seconds": _clock() - start,
            "before": before,
            "resident": machine.resident(),
            "weights": sum(p.nbytes for p in self._source.module.parameters()),
        }

    def ready(self, kind: str, tokens: int, batch: int) -> None:
        """Get ready to measure forward passes: over a prompt, or over a context and a token."""
        length = tokens if kind == "prefill" else tokens + 1
        inputs = self._source.random_inputs(batch, length, SEED)
        self._call = lambda: self._source.module(**inputs)

    def run(self, seconds: float, iterations: int) -> list[float]:
        """Seconds of each call: at least `iterations` of them, and until `seconds` are over."""
        times: list[float] = []
        end = _clock() + seconds
        with torch.inference_mode():
            while len(times) < iterations or _clock() < end:
                start = _clock()
                self._call()
                times.append(_clock() - start)
        return times

    def footprint(self) -> dict[str, Any]:
        """Bytes that the process takes by now."""
        return {"resident": machine.resident(), "peak": machine.peak()}


def main() -> None:
    """Serve the parent."""
    runner = Runner()
    serve({name: getattr(runner, name) for name in ("load", "ready", "run", "footprint")})


if __name__ == "__main__":
    main()
