"""Every recurrent system of `models/`: its step engine against float64, and what it carries.

    python benchmarks/recurrent_family.py [--quick] [--only NAME,...] [--jobs N] [--json]

Weights are those of `models/checkpoints/` where a preset was trained, else random; beside presets
the variants that papers compare.  For each the largest error of 1,024 steps against one call of
the module in float64 (outputs and states, as `verify` compares them; of models that take whole
images, of these), the worst of its layers alone on normal numbers where that is more than what one
layer may be off by, the difference between one call of the engine and calls of uneven parts, the
bytes that a row carries, and, where these do not grow, the time of a step after 16,384 tokens
against that after 128, in turns, as the median of the ratios of pairs; a model that takes fewer
tokens is built anew for as many.  Engines of TensorRT-RTX are those of `recurrent_engines.py`.

A system takes ten seconds of one core, most of them its export.  `--jobs` takes several at a time,
`--only` models, or presets and variants of them, as ``"mom tiny,s4"``.
"""

import argparse
import inspect
import itertools
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from evidence import Row, paired, ratio, run
from torch import nn

import intaglio
from intaglio.errors import IntaglioError
from intaglio.exporter.export import ExportReport
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.models import MODELS, find, save
from intaglio.models.parts.language_layers import LanguageModel
from intaglio.quiet import quiet
from intaglio.runtime import Session
from intaglio.state import TIME

CHECKPOINTS = Path(__file__).parents[1] / "models" / "checkpoints"
NAMES = (
    "al-rnn", "gated-deltanet", "gla", "hybrid-linear-attention", "liger", "mamba", "mmmamba",
    "mom", "mvar", "nala", "nalaformer", "rwkv7", "s4", "s4d", "seqboat",
)  # fmt: skip
MIXERS = ("retnet", "hgrn", "hgrn2", "gla", "deltanet", "gated-deltanet")
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {  # of the preset tiny, by what differs
    "hybrid-linear-attention": {
        **{f"{mixer} alone": {"layers": (mixer,) * 2} for mixer in MIXERS},
        "hgrn2 and attention, 3 to 1": {"layers": ("hgrn2",) * 3 + ("attention",)},
        **{
            f"gated-deltanet and attention, {times} to 1": {
                "layers": ("gated-deltanet",) * times + ("attention",)
            }
            for times in (6, 12, 24)
        },
    },
    "s4": {
        "legs": {"context": 2048},
        "legt": {"context": 2048, "basis": "legt", "rank": 2},
        "fout": {"context": 2048, "basis": "fout"},
    },
    "seqboat": {
        "squares": {"attention": "relu2"},
        "distances": {"positions": "simple", "max_positions": 2048},
    },
}
STEPS, QUICK_STEPS = 1024, 128
PARTS = (1, 2, 63, 1, 65)  # the rest comes in one call
LIMIT, LAYER, SPLIT, FLAT = 1e-4, 1e-5, 1e-5, 1.1
NEAR, FAR, QUICK_FAR = 128, 16_384, 2048
CHUNK, PAIRS = 1024, 300
SEED = 5

Array = npt.NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=1)
    options, sys.argv[1:] = parser.parse_known_args()
    only = chosen_of(parser, options.only)
    chosen = ["--only", shlex.quote(options.only)] * bool(only)
    run(__doc__, lambda quick: measure(quick, only, options.jobs), chosen)


def chosen_of(parser: argparse.ArgumentParser, names: str) -> set[str]:
    """The names after `--only`, or the parser's error where one is of nothing."""
    only = set(filter(None, re.split(r",(?! )", names)))  # names of variants hold ", "
    models = [model for model in MODELS if model.name in NAMES]
    known = {f"{m.name} {x}" for m in models for x in (*m.presets, *VARIANTS.get(m.name, ()))}
    if unknown := only - {*NAMES, *known}:
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    return only


def measure(quick: bool, only: set[str], jobs: int) -> list[Row]:
    """The rows of each system."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, place = only or set(NAMES), Path(folder)
        systems = [*checkpoints(place, wanted), *(() if quick else variants(place, wanted))]
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            calls = [pool.submit(_rows, name, path, place, quick) for name, path in systems]
            return [row for call in calls for row in call.result()]


def checkpoints(folder: Path, names: AbstractSet[str]) -> Iterator[tuple[str, Path]]:
    """A trained checkpoint for each preset, or one of random weights."""
    trained = {}
    for path in sorted(CHECKPOINTS.glob("*.pt")):
        saved = torch.load(path, weights_only=True)
        trained[saved["model"], repr(sorted(saved["config"].items()))] = path
    for model in MODELS:
        for preset, config in model.presets.items():
            if names.isdisjoint((model.name, f"{model.name} {preset}")):
                continue
            found = trained.get((model.name, repr(sorted(asdict(config).items()))))
            if found is not None:
                yield f"{model.name} {preset}", found
            else:
                yield _random(folder, model.name, preset, config)


def variants(folder: Path, names: AbstractSet[str]) -> Iterator[tuple[str, Path]]:
    """A checkpoint of random weights for each variant."""
    for model in MODELS:
        for title, other in VARIANTS.get(model.name, {}).items():
            if names.isdisjoint((model.name, f"{model.name} {title}")):
                continue
            yield _random(folder, model.name, title, replace(model.presets["tiny"], **other))


def _random(folder: Path, name: str, title: str, config: Any) -> tuple[str, Path]:
    """A checkpoint of random weights."""
    (model,) = (each for each in MODELS if each.name == name)
    torch.manual_seed(0)
    path = folder / f"{name}-{title}.pt"
    save(path, name, config, model.build(config))
    return f"{name} {title}, random weights", path


def _rows(name: str, checkpoint: Path, folder: Path, quick: bool) -> list[Row]:
    """What was measured of one system, or why nothing was."""
    torch.set_num_threads(1)
    out, steps, start = (
        folder / name.replace(" ", "-"),
        QUICK_STEPS if quick else STEPS,
        time.time(),
    )
    try:
        with quiet():
            source = load_source(checkpoint)
            report = intaglio.export(source, out, steps=steps)
    except IntaglioError as refusal:
        return [Row(name=name, value=1, unit="refused", holds=False, note=str(refusal))]
    graph = report.manifest.main
    rows = [_error(name, report)]
    print(f"{name}: {time.time() - start:.0f} s", file=sys.stderr, flush=True)
    if rows[0].value > LAYER:
        rows += _layers(name, source, out, steps)
    if graph.whole or not graph.states:
        return rows
    grown = [spec.input for spec in graph.states if spec.grows]
    rows.append(
        Row(
            name=f"{name}: state of a row",
            value=sum(spec.nbytes(1, NEAR) for spec in graph.states),
            unit="bytes",
            note=f"at {NEAR} tokens; {len(grown)} of {len(graph.states)} grow"
            if grown
            else "does not grow",
        )
    )
    along, once = _fed(source, 1)
    if not along or once.keys() != {spec.name for spec in graph.conditions}:
        return rows  # a call takes more than its next tokens
    if graph.limits.ends:
        return rows  # tokens come in blocks, as scales of a picture do: any other cut is refused
    rows.append(_split(name, source, out))
    if grown:
        return rows
    far, most, note = QUICK_FAR if quick else FAR, graph.limits.max_context, ""
    if most is not None and most < far + CHUNK:
        source, note = _lengthened(name, checkpoint, folder, far + CHUNK)
        with quiet():
            intaglio.export(source, out, verify=False, force=True)
    return [*rows, replace(_flat(name, source, out, far), note=note)]


def _lengthened(name: str, checkpoint: Path, folder: Path, tokens: int) -> tuple[Source, str]:
    """The same model of random weights for as many tokens, whose config calls them its context."""
    saved = torch.load(checkpoint, weights_only=True)
    config = replace(find(saved["model"]).configure(saved["config"]), context=tokens)
    _, longer = _random(folder, saved["model"], f"{name} longer", config)
    return load_source(longer), f"random weights, for {tokens} tokens"


def _error(name: str, report: ExportReport) -> Row:
    """The largest error of ONNX Runtime's graph, over outputs and states."""
    assert report.parity is not None
    error = max(row.found.error for row in report.parity.rows)
    whole = report.manifest.main.whole
    return Row(
        name=f"{name}: {'whole inputs' if whole else 'steps'}",
        value=error,
        unit="error",
        target=f"<= {LIMIT:g}",
        holds=error <= LIMIT,
        against=f"PyTorch, {report.parity.precision}",
        note="" if whole else f"{report.parity.steps} steps",
    )


def _layers(name: str, source: Source, out: Path, steps: int) -> Iterator[Row]:
    """The largest error of a layer alone, over all of a language model's."""
    assert isinstance(source.body, nn.Module)
    stack = next(x for x in source.body.modules() if isinstance(x, LanguageModel)).layers
    errors = []
    for index, layer in enumerate(stack):
        torch.manual_seed(index)
        (given,) = inspect.signature(layer.forward).parameters
        x = {given: torch.randn(2, 16, layer.get_parameter("input_layernorm.weight").numel())}
        with quiet():
            report = intaglio.export(layer, out.with_name(f"{out.name}-{index}"), inputs=x,
                                     steps=steps)  # fmt: skip
        errors.append(_error("", report).value)
    yield Row(name=f"{name}: steps of a layer alone", value=max(errors), unit="error",
              target=f"<= {LAYER:g}", holds=max(errors) <= LAYER, against="PyTorch, float64",
              note=f"{steps} steps; the worst of {len(errors)}")  # fmt: skip


def _fed(source: Source, tokens: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Random inputs of one row: those along time, and those that are given once."""
    drawn = {n: x.numpy() for n, x in source.random_inputs(1, tokens, SEED).items()}
    along = {n: x for n, x in drawn.items() if TIME in source.dynamic[n].values()}
    return along, {n: x for n, x in drawn.items() if n not in along}


def _opened(out: Path, once: dict[str, Array]) -> Session:
    session = Session.load(out, threads=1)
    if once:
        session.condition(once)
    return session


def _part(source: Source, inputs: dict[str, Array], first: int, last: int) -> dict[str, Array]:
    """The tokens from `first` to before `last`."""
    axes = {n: next(a for a, d in source.dynamic[n].items() if d == TIME) for n in inputs}
    return {n: x.take(range(first, last), axes[n]) for n, x in inputs.items()}


def _split(name: str, source: Source, out: Path) -> Row:
    """One call against calls of uneven parts, over their states at the end as well."""
    tokens = 2 * sum(PARTS)
    inputs, once = _fed(source, tokens)
    whole, parted = _opened(out, once), _opened(out, once)
    whole.step(inputs)
    ends = [*itertools.accumulate(PARTS), tokens]
    for first, last in itertools.pairwise([0, *ends]):
        parted.step(_part(source, inputs, first, last))
    last_token = _part(source, inputs, tokens - 1, tokens)
    wanted, got = whole.step(last_token), parted.step(last_token)
    difference = max(
        float(np.abs(got[n].astype(float) - wanted[n]).max() / max(np.abs(wanted[n]).max(), 1e-30))
        for n in wanted
    )
    return Row(
        name=f"{name}: parts against one call",
        value=difference,
        unit="error",
        target=f"<= {SPLIT:g}",
        holds=difference <= SPLIT,
        note=f"parts of {', '.join(map(str, PARTS))} and the rest of {tokens}",
    )


def _flat(name: str, source: Source, out: Path, far: int) -> Row:
    """The time of a step after many tokens against that after few."""
    inputs, once = _fed(source, CHUNK)
    sessions = [_opened(out, once), _opened(out, once)]
    for _ in range(far // CHUNK):  # any recurrence has to go through them
        sessions[0].step(inputs)
    sessions[1].step(_part(source, inputs, 0, NEAR))
    token = _part(source, inputs, 0, 1)
    slow, fast = paired(
        lambda: sessions[0].step(token), lambda: sessions[1].step(token), PAIRS, warmup=20
    )
    value = ratio(slow, fast)
    return Row(
        name=f"{name}: step after {far} tokens : after {NEAR}",
        value=value,
        unit="ratio",
        target=f"<= {FLAT:g}",
        holds=value <= FLAT,
    )


if __name__ == "__main__":
    main()
