"""Every system of `models/` that is stepped: its step engine against float64, and what it carries.

    python benchmarks/recurrent_family.py [--quick] [--only NAME,...] [--json]

Weights are those of `models/checkpoints/` where a preset was trained, else random.  For each the
largest error of 1,024 steps against one call of the module in float64 (outputs and states, as
`verify` compares them), the difference between one call of the engine and calls of uneven parts,
the bytes that a row carries, and, where these do not grow, the time of a step after 16,384 tokens
against that after 128.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from evidence import Row, paired, ratio, run

import intaglio
from intaglio.errors import IntaglioError
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.models import MODELS, save
from intaglio.quiet import quiet
from intaglio.runtime import Session
from intaglio.state import TIME

CHECKPOINTS = Path(__file__).parents[1] / "models" / "checkpoints"
STEPS, QUICK_STEPS = 1024, 128
PARTS = (1, 2, 63, 1, 65)  # the rest comes in one call
LIMIT, SPLIT, FLAT = 1e-4, 1e-5, 1.1
NEAR, FAR, QUICK_FAR = 128, 16_384, 2048
CHUNK = 512
SEED = 5

Array = npt.NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default="")
    options, sys.argv[1:] = parser.parse_known_args()
    only = set(filter(None, options.only.split(",")))
    chosen = ["--only", options.only] * bool(only)
    run(__doc__, lambda quick: measure(quick, only), chosen)


def measure(quick: bool, only: set[str]) -> list[Row]:
    """The rows of each system."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, checkpoint in checkpoints(Path(folder), only):
            print(name, file=sys.stderr, flush=True)
            rows += _rows(name, checkpoint, Path(folder) / name.replace(" ", "-"), quick)
    return rows


def checkpoints(folder: Path, only: set[str]) -> Iterator[tuple[str, Path]]:
    """A trained checkpoint for each preset, or one of random weights."""
    trained = {}
    for path in sorted(CHECKPOINTS.glob("*.pt")):
        saved = torch.load(path, weights_only=True)
        trained[saved["model"], repr(sorted(saved["config"].items()))] = path
    for model in MODELS:
        for preset, config in model.presets.items():
            if only and model.name not in only:
                continue
            found = trained.get((model.name, repr(sorted(asdict(config).items()))))
            if found is not None:
                yield f"{model.name} {preset}", found
                continue
            torch.manual_seed(0)
            path = folder / f"{model.name}-{preset}.pt"
            save(path, model.name, config, model.build(config))
            yield f"{model.name} {preset}, random weights", path


def _rows(name: str, checkpoint: Path, out: Path, quick: bool) -> list[Row]:
    """What was measured of one system, or why nothing was."""
    try:
        with quiet():
            source = load_source(checkpoint)
            if source.whole or TIME not in source.symbols:
                return []  # nothing to step
            report = intaglio.export(source, out, steps=QUICK_STEPS if quick else STEPS)
    except IntaglioError as refusal:
        return [Row(name=name, value=1, unit="refused", holds=False, note=str(refusal))]
    graph = report.manifest.main
    if graph.whole or not graph.states:
        return []
    assert report.parity is not None
    error = max(row.found.error for row in report.parity.rows)
    grown = [spec.input for spec in graph.states if any(isinstance(d, str) for d in spec.shape[1:])]
    rows = [
        Row(
            name=f"{name}: steps",
            value=error,
            unit="error",
            target=f"<= {LIMIT:g}",
            holds=error <= LIMIT,
            against=f"PyTorch, {report.parity.precision}",
            note=f"{report.parity.steps} steps",
        ),
        Row(
            name=f"{name}: state of a row",
            value=sum(spec.nbytes(1, NEAR) for spec in graph.states),
            unit="bytes",
            note=f"at {NEAR} tokens; {len(grown)} of {len(graph.states)} grow"
            if grown
            else "does not grow",
        ),
    ]
    along, once = _fed(source, 1)
    if not along or once.keys() != {spec.name for spec in graph.conditions}:
        return rows  # a call takes more than its next tokens
    if graph.limits.ends:
        return rows  # tokens come in blocks, as scales of a picture do: any other cut is refused
    rows.append(_split(name, source, out))
    far, most = QUICK_FAR if quick else FAR, graph.limits.max_context
    short = most is not None and most < 2 * far  # than the tokens that are to lie behind a step
    return rows if grown or short else [*rows, _flat(name, source, out, far)]


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
    for _ in range(far // CHUNK):
        sessions[0].step(inputs)
    sessions[1].step(_part(source, inputs, 0, NEAR))
    token = _part(source, inputs, 0, 1)
    slow, fast = paired(
        lambda: sessions[0].step(token), lambda: sessions[1].step(token), 300, warmup=20
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
