"""A source in PyTorch, eager, as it is measured beside its bundle; the child process, too.

A prefill is one forward pass over the prompt.  A module in training form has no cache, so a step at
a context of n tokens is a forward pass over n + 1: that is what generating a token with it costs.
A module of transformers steps with the cache that it makes itself, if that gives what a forward
pass over all tokens gives; each step is given a copy, made before the clock starts.
"""

import copy
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intaglio.exporter.options.loading import LoadKeywords, LoadOptions
from intaglio.exporter.sources.load import load
from intaglio.exporter.sources.source import Source
from intaglio.runtime import machine
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.child_worker import serve
from intaglio.runtime.graph_entry import MAIN
from intaglio.runtime.profile.report import EAGER
from intaglio.runtime.profile.settings import Contestant
from intaglio.state import TIME

from .as_made import as_made, plainly

SEED = 0
CLOSE = 1e-3  # of the largest output: two ways to compute it in float32
OWN_CACHE = "the library's own, with its cache"
RECOMPUTED = "a forward pass over the context and the token"

Tensors = Mapping[str, Tensor]

_clock = time.perf_counter


def contestant(
    source: Path,
    bundle: Bundle,
    threads: int | None,
    options: LoadKeywords,
    recipe: str | Path | None = None,
) -> Contestant:
    """The source as a contestant.

    Args:
        source: a path as for `load_source`.
        bundle: what was exported from it, which says how it is loaded where nothing else does.
        threads: threads that PyTorch may use; None leaves it to PyTorch.
        options: how to load it; what is in files as paths.
        recipe: what says the rest, in place of the bundle.
    """
    given = plainly(as_made(options, bundle.manifest, recipe, ranges=True))
    return Contestant(
        name=_name(),
        kind=EAGER,
        child="intaglio.exporter.proving.eager",
        load={"path": str(source), "threads": threads, "options": _plain(given)},
        about={"source": source.name},
    )


def _name() -> str:
    return f"PyTorch {torch.__version__.partition('+')[0]}, eager"


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
        self._call: Callable[[], float]
        self._steps = False

    def load(self, path: str, threads: int | None, options: dict[str, Any]) -> dict[str, Any]:
        """Load the source; seconds and bytes that it took, and what a step is."""
        if threads is not None:
            torch.set_num_threads(threads)
        before, start = machine.resident(), _clock()
        self._source = load(Path(path), LoadOptions.of(options))
        found = {
            "seconds": _clock() - start,
            "before": before,
            "resident": machine.resident(),
            "weights": sum(p.nbytes for p in self._source.module.parameters()),
        }
        self._steps = _steps_with_cache(self._source)
        kept = "with its cache" if self._steps else "no cache"
        about = {"step": OWN_CACHE if self._steps else RECOMPUTED}
        return {**found, "name": f"{_name()}, {kept}", "about": about}

    def ready(self, kind: str, tokens: int, batch: int, graph: str = MAIN) -> None:  # noqa: ARG002
        """Get ready to measure forward passes over a prompt, or steps after a context."""
        step = self._step if kind == "step" and self._steps else self._forward
        length = tokens if kind == "prefill" else tokens + 1
        self._call = step(self._source.random_inputs(batch, length, SEED))

    def run(self, seconds: float, iterations: int) -> list[float]:
        """Seconds of each call: at least `iterations` of them, and until `seconds` are over."""
        times: list[float] = []
        end = _clock() + seconds
        with torch.inference_mode():
            while len(times) < iterations or _clock() < end:
                times.append(self._call())
        return times

    def _forward(self, inputs: Tensors) -> Callable[[], float]:
        def call() -> float:
            start = _clock()
            self._source.module(**inputs)
            return _clock() - start

        return call

    def _step(self, inputs: Tensors) -> Callable[[], float]:
        before, last = _split(self._source, inputs)
        module: Any = self._source.module
        with torch.inference_mode():
            _, kept = module.step_with_cache(None, **before)

        def call() -> float:
            past = copy.deepcopy(kept)
            start = _clock()
            module.step_with_cache(past, **last)
            return _clock() - start

        return call

    def footprint(self) -> dict[str, Any]:
        """Bytes that the process takes by now."""
        return {"resident": machine.resident(), "peak": machine.peak()}


def _steps_with_cache(source: Source) -> bool:
    """Whether the module has a cache of its own, and steps with it as it runs without."""
    module: Any = source.module
    if not hasattr(module, "step_with_cache"):
        return False
    inputs = source.random_inputs(2, 5, SEED)
    before, last = _split(source, inputs)
    with torch.inference_mode():
        expected = next(iter(module(**inputs).values()))[:, -1]
        try:
            _, past = module.step_with_cache(None, **before)
            found = module.step_with_cache(copy.deepcopy(past), **last)[0][:, -1]
        except Exception:  # noqa: BLE001 - whatever stands in the way, the other form is measured
            return False
    return bool((found - expected).abs().max() <= CLOSE * expected.abs().max())


def _split(source: Source, inputs: Tensors) -> tuple[Tensors, Tensors]:
    """All tokens but the last, and the last; what has no time belongs to both."""
    before, last = dict(inputs), dict(inputs)
    for name, axes in source.dynamic.items():
        for axis, symbol in axes.items():
            if symbol == TIME and name in inputs:
                rest = inputs[name].shape[axis] - source.pace
                before[name] = inputs[name].narrow(axis, 0, rest)
                last[name] = inputs[name].narrow(axis, rest, source.pace)
    return before, last


def main() -> None:
    """Serve the parent."""
    runner = Runner()
    serve({name: getattr(runner, name) for name in ("load", "ready", "run", "footprint")})


if __name__ == "__main__":
    main()
