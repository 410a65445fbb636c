"""Random modules, exported; none may end in an internal error, none that exports may be wrong.

    python benchmarks/fuzz_modules.py [--quick] [--seed N] [--case K] [--cases N] [--masks] [--all]
                                      [--log FILE] [--workers N] [--json]

Each case is a module of `random_modules`, exported in a child of its own through the Python API or
the command line, with `--axes` or without, whole or as it is found.  A refusal is an answer; an
exit code of 4, another exception than those of `intaglio.errors`, a crash or a hang is a fault, and
so is a bundle whose results differ from the module's at lengths, batches and splits other than
those that were traced.  `--masks` draws masks of attention alone, several in a module, and goes to
1,700 tokens.  `--seed N --case K` runs one case again and shows all of it; `--all` shows what is no
fault as well, and `--log` keeps what became of each, so that a run that is stopped goes on there.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import forked
import numpy as np
import numpy.typing as npt
import torch
from evidence import Row, run
from forked import Ended
from random_masks import random_mask
from random_modules import Spec, draw, inputs_of, module_of
from torch import nn

import intaglio
import intaglio.cli
import intaglio.exporter.export
from intaglio.errors import IntaglioError, StateError
from intaglio.quiet import quiet
from intaglio.runtime import Session

CASES, QUICK = 1000, 12
TOGETHER = 6  # masks of one module
SECONDS = 300  # of processor time
PATIENCE = 600.0  # seconds on the clock, for what waits without working
LIMIT = 2e-4  # beside what rounding makes of the module itself
VERDICTS = "verdicts.json"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Verdict:
    """What became of a case: `kind` is what it ended as, `said` the message or the difference."""

    number: int
    kind: str
    said: str

    @property
    def fault(self) -> bool:
        return self.kind in ("internal error", "raw exception", "wrong", "died", "hung")


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--masks", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    options, sys.argv[1:] = parser.parse_known_args()
    if options.case is None:
        run(__doc__, lambda quick: measure(QUICK if quick else options.cases, options))
        return
    spec = case(options.seed, options.case, masks=options.masks)[0]
    print(json.dumps(spec.plain(), indent=1))
    with tempfile.TemporaryDirectory() as folder:
        print(attempt(options.seed, options.case, Path(folder), masks=options.masks))


def measure(cases: int, options: argparse.Namespace) -> list[Row]:
    """How many cases ended in what, and which are faults; with `all`, every one is shown."""
    start = time.monotonic()
    found = [Verdict(**each) for each in forked.kept(options.log)]
    verdicts = [verdict for verdict in found if verdict.number < cases]
    known = {verdict.number for verdict in verdicts}
    for verdict in _verdicts([n for n in range(cases) if n not in known], options):
        verdicts.append(verdict)
        forked.keep(options.log, verdict)
        expected = verdict.kind in ("refused", "equal", "whole, equal")
        if options.all or verdict.fault or not expected:
            where = f"--seed {options.seed} --case {verdict.number}"
            print(f"{where}: {verdict.kind}\n  {_short(verdict.said)}", file=sys.stderr, flush=True)
    counts = Counter(verdict.kind for verdict in verdicts)
    rows = [
        Row(name=kind, value=count, unit=f"of {len(verdicts)}")
        for kind, count in sorted(counts.items())
    ]
    faults = sum(verdict.fault for verdict in verdicts)
    rows.append(Row(name="faults", value=faults, unit="", target="0", holds=not faults))
    if known:  # the rest took time as well
        return rows
    return [*rows, Row(name="duration", value=(time.monotonic() - start) / 60, unit="minutes")]


def _verdicts(numbers: Iterable[int], options: argparse.Namespace) -> Iterator[Verdict]:
    """Run cases in children; yield what became of each."""

    def run_one(number: int, folder: Path) -> int:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used = int(time.process_time()) + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (used, used + 5))
        found = attempt(options.seed, number, folder, masks=options.masks)
        (folder / VERDICTS).write_text(json.dumps([vars(each) for each in found]))
        return 0

    def export(out: Path) -> None:
        intaglio.export(nn.Linear(2, 2), out, inputs=torch.zeros(2, 3, 2), verify=False)

    forked.warm_up(export, [["export", "nothing", "-o", "out"]])
    with tempfile.TemporaryDirectory(prefix="modules-") as inside:
        for ended in forked.forked(numbers, run_one, Path(inside), options.workers, PATIENCE):
            yield from _told(ended)


def _told(ended: Ended) -> list[Verdict]:
    told = ended.folder / VERDICTS
    if told.exists():
        return [Verdict(**each) for each in json.loads(told.read_text())]
    kind = "hung" if ended.hung else "died"
    code = os.waitstatus_to_exitcode(ended.status)
    return [Verdict(ended.number, kind, f"exit code {code}: {forked.said(ended.folder)}")]


def _short(said: str) -> str:
    return said if len(said) < 1500 else f"{said[:500]} ... {said[-900:]}"


def case(seed: int, number: int, *, masks: bool = False) -> tuple[Spec, dict[str, Any]]:
    """The spec of a case and how it is exported."""
    random = Random(f"{seed}:{number}")
    spec = draw(random.randrange(1 << 30))
    if masks:
        spec = _attending(spec.seed, [random_mask(random) for _ in range(TOGETHER)])
    names = {"b": "batch", "t": "time"}
    axes = {n: [names.get(a, a) for a in e["axes"]] for n, e in spec.inputs.items()}
    how: dict[str, Any] = {}
    if random.random() < 0.5 and not masks:
        how["axes"] = axes
    if random.random() < 0.25 and not masks:
        how["whole"] = True
    how["by"] = "cli" if random.random() < 0.15 and not masks else "api"
    how["verify"] = random.random() < 0.5 and not masks
    if masks:
        how["whole"] = False
    return spec, how


def _attending(seed: int, masks: list[Any]) -> Spec:
    """Attention under several masks, each with an output of its own."""
    lines: list[dict[str, Any]] = [{"op": "embedding", "of": [0], "args": {"dim": 0}}]
    lines += [
        {"op": "attend", "of": [1, 1, 1], "args": {"heads": 2, "mask": mask}} for mask in masks
    ]
    inputs = {"input_ids": {"kind": "ids", "axes": ["b", "t"]}}
    return Spec(seed, inputs, lines, list(range(2, 2 + len(masks))))


def attempt(seed: int, number: int, folder: Path, *, masks: bool = False) -> list[Verdict]:
    """Export a case and hold the bundle to the module; masks that fail, each by itself."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    spec, how = case(seed, number, masks=masks)
    if not masks:
        return [_attempt(number, spec, how, folder)]
    waiting, found = [[line["args"]["mask"] for line in spec.lines[1:]]], []
    while waiting:
        together = waiting.pop()
        folder = Path(tempfile.mkdtemp(dir=folder))
        verdict = _attempt(number, _attending(spec.seed, together), dict(how), folder, masks=True)
        if len(together) > 1 and not verdict.kind.endswith("equal"):
            half = len(together) // 2
            waiting += [together[half:], together[:half]]
        else:
            said = verdict.said if verdict.kind == "equal" else f"{verdict.said}\n{together}"
            found += [Verdict(number, verdict.kind, said)] * len(together)
    return found


def _attempt(
    number: int, spec: Spec, how: dict[str, Any], folder: Path, *, masks: bool = False
) -> Verdict:
    module, inputs = module_of(spec), inputs_of(spec, {"b": 2, "t": 9}, 1)
    if how.pop("by") == "cli":
        return _by_command(number, spec, module, inputs, how, folder)
    try:
        with quiet():
            intaglio.export(module, folder / "bundle", inputs=inputs, **how)
    except IntaglioError as why:
        kind = "parity failed" if type(why).__name__ == "ParityError" else "refused"
        return Verdict(number, kind, f"{type(why).__name__}: {why}")
    except BaseException:  # noqa: BLE001  that is what is looked for
        return Verdict(number, "raw exception", traceback.format_exc())
    return _compared(number, spec, module, folder / "bundle", masks=masks)


def _by_command(
    number: int, spec: Spec, module: nn.Module, inputs: Any, how: dict[str, Any], folder: Path
) -> Verdict:
    torch.save(module.state_dict(), folder / "weights.pt")
    (folder / "config.json").write_text(json.dumps(spec.plain()))
    np.savez(folder / "inputs.npz", **{name: value.numpy() for name, value in inputs.items()})
    words = [
        "export", str(folder / "weights.pt"), "-o", str(folder / "bundle"),
        "--model", "random_modules:build", "--config", str(folder / "config.json"),
        "--import-from", str(Path(__file__).parent), "--inputs", str(folder / "inputs.npz"),
    ]  # fmt: skip
    for name, dims in how.get("axes", {}).items():
        words += ["--axes", f"{name}:{'x'.join(map(str, dims))}"]
    words += ["--whole"] * ("whole" in how) + ["--no-verify"] * (not how["verify"])
    code, text = forked.command(words), forked.said(folder)
    if code:
        kind = {1: "refused", 2: "refused", 3: "parity failed"}.get(code, "internal error")
        return Verdict(number, kind, f"{' '.join(words[8:])}\n{text}")
    return _compared(number, spec, module, folder / "bundle")


def _compared(
    number: int, spec: Spec, module: nn.Module, path: Path, *, masks: bool = False
) -> Verdict:
    session = Session.load(path, threads=1)
    whole = bool(session.manifest.main.whole)
    # An axis that a module of no time has may be taken for time, where each entry stays alone.
    at_once = whole or not any("t" in each["axes"] for each in spec.inputs.values())
    sizes = [
        {"b": 2, "t": 17},
        {"b": 1, "t": 24},
        {"b": 3, "t": 1},
        {"b": 2, "t": 9},
        {"b": 1, "t": 70},
    ]
    if masks:
        sizes = [{"b": 2, "t": 1100}, {"b": 1, "t": 1700}]
    worst = ""
    for at, size in enumerate(sizes):
        given = inputs_of(spec, size, 50 + at)
        try:
            with torch.no_grad():
                wanted = _flat(module(*given.values()))
                exact = wanted
        except Exception:  # noqa: BLE001  the module takes no such sizes
            continue
        try:
            for parts in [[size["t"]]] if at_once else _splits(size["t"]):
                found = _stepped(session, spec, given, parts)
                if exact is wanted and any(map(_difference, found.values(), wanted, wanted)):
                    with torch.no_grad():
                        exact = _flat(_double(spec)(*(_wide(x) for x in given.values())))
                for name, got, want, fine in zip(found, found.values(), wanted, exact, strict=True):
                    difference = _difference(got, want, fine)
                    if difference:
                        worst = worst or f"{name} at {size}, parts {parts[:6]}: {difference}"
        except StateError as why:
            return Verdict(number, "own state", str(why))
        except IntaglioError as why:
            if not worst and at == 3:
                return Verdict(number, "refused sizes", f"{size}: {why}")
        except BaseException:  # noqa: BLE001  that is what is looked for
            return Verdict(number, "raw exception", traceback.format_exc())
        if worst:
            return Verdict(number, "wrong", worst)
    return Verdict(number, "whole, equal" if whole else "equal", "")


def _double(spec: Spec) -> nn.Module:
    return module_of(spec).double()


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


def _flat(found: Any) -> list[Array]:
    if isinstance(found, dict):
        found = tuple(found.values())
    if isinstance(found, torch.Tensor):
        found = (found,)
    return [(x.float() if x.is_floating_point() else x).numpy() for x in found]


def _splits(tokens: int) -> list[list[int]]:
    parts, left = [], tokens
    for part in [1, 2, 5, 1, 30, 1, 1, 290, 7, 400]:
        parts.append(min(part, left))
        left -= parts[-1]
    uneven = [part for part in [*parts, left] if part]
    return [[tokens], uneven] + ([[1] * tokens] if tokens <= 100 else [])


def _stepped(
    session: Session, spec: Spec, given: dict[str, torch.Tensor], parts: list[int]
) -> dict[str, Array]:
    entry = session.entry
    if not session.manifest.main.whole:
        session.state.reset()
    names = dict(zip([x.name for x in entry.inputs], [x.shape for x in entry.inputs], strict=True))
    sources = list(spec.inputs)
    if set(sources) != set(names):
        raise StateError("an input is a state of its own")
    ends = np.cumsum([0, *parts])
    steps: list[dict[str, Array]] = []
    for a, b in pairwise(ends):
        step = {}
        for name, value in zip(sources, given.values(), strict=True):
            array = value.numpy()
            axes = spec.inputs[name]["axes"]
            if len(parts) > 1 and "t" in axes:
                array = np.take(array, range(a, b), axes.index("t"))
            step[name if name in names else _alike(name, names)] = array
        steps.append(session.step(step))
    outputs = {x.name: x.shape for x in entry.outputs}
    found = {}
    for name in steps[0]:
        axis = [at for at, dim in enumerate(outputs[name]) if "time" in str(dim)]
        along = len(parts) > 1 and axis
        found[name] = (
            np.concatenate([step[name] for step in steps], axis[0]) if along else steps[-1][name]
        )
    return found


def _alike(name: str, names: Any) -> str:
    return next((each for each in names if each.startswith(name) or name in each), name)


def _difference(got: Array, want: Array, fine: Array) -> str:
    if got.shape != want.shape:
        return f"shape {got.shape}, not {want.shape}"
    if want.dtype.kind in "biu":
        differ = int((got != want).sum())
        unsure = int((want != fine).sum())
        return f"{differ} integers differ" if differ > unsure else ""
    if (np.isnan(got) != np.isnan(want)).any():
        unsure = int((np.isnan(want) != np.isnan(fine)).sum())
        return "" if unsure else "NaN where there is none, or none where there is"
    scale = float(np.nanmax(np.abs(want[np.isfinite(want)]), initial=1e-3))
    with np.errstate(invalid="ignore", over="ignore"):
        rounding = float(np.nanmax(np.where(want == fine, 0.0, np.abs(want - fine)), initial=0.0))
        off = np.abs(got.astype(np.float64) - want)
    off = np.where(got == want, 0.0, off)
    error = float(np.nanmax(off, initial=0.0))
    if error <= scale * LIMIT + 20 * rounding:
        return ""
    return f"error {error / scale:.2e}, where rounding makes {rounding / scale:.2e}"


if __name__ == "__main__":
    main()
