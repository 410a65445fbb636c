"""From a supernet to the subnet of a budget: `intaglio subnet`, and `intaglio export --budget`.

Bits are counted as a bundle holds them, with a scale and an offset of 32 bits for each group.  A
time is that of a step in ONNX Runtime, measured of engines with the same bits in all layers and in
between taken to follow the weights; what is taken is then measured itself.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.options.clock import Clock, Progress
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.calibration_data import data_hash
from intaglio.exporter.sources.container import read_container
from intaglio.exporter.sources.kinds.module import in_memory
from intaglio.jobs import Kept, Where
from intaglio.models import find
from intaglio.models.supernet import BITS, restore, subnet, super_layers
from intaglio.places import require_file
from intaglio.runtime.profile.measure import profile
from intaglio.runtime.profile.settings import ProfileSettings
from intaglio.whole_files import output

from .export import export
from .merging.losses import Data, read_data
from .subnet_search import Budget, Sizes, Tried, require_met, search

RANDOM, AROUND = 100, 50  # evaluations
MEASURED = 5  # subnets that are measured at most, the best first, until one is in time


@dataclass(frozen=True, kw_only=True)
class SubnetReport:
    """What was searched: all that was tried, the best of each size, and what was taken.

    `ms` is what a step of the taken one took, where the budget is a time.
    """

    budget: Budget
    layers: tuple[str, ...]
    tried: tuple[Tried, ...]
    taken: Tried
    ms: float | None = None
    out: Path | None = None

    @property
    def bits(self) -> dict[str, int]:
        """Bits of each layer by its path, as `export` takes them."""
        return dict(zip(self.layers, self.taken.bits, strict=True))

    @property
    def pareto(self) -> tuple[Tried, ...]:
        """Those than which no smaller one has less loss, the smallest first."""
        found: list[Tried] = []
        for each in sorted(self.tried, key=lambda t: (t.costs(self.budget.unit), t.mean, t.loss)):
            if not found or each.loss < found[-1].loss:
                found.append(each)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        out = {} if self.out is None else {"out": str(self.out)}
        measured = {} if self.ms is None else {"ms": self.ms}
        return {
            **out,
            "budget": str(self.budget),
            "bits": self.bits,
            "taken": {**_row(self.taken), **measured},
            "evaluated": len(self.tried),
            "uniform": [_row(each) for each in self.tried if len(set(each.bits)) == 1],
            "pareto": [_row(each) for each in self.pareto],
        }


def search_subnet(
    supernet: str | Path,
    *,
    budget: str,
    data: str | Path,
    seed: int = 0,
    evaluations: tuple[int, int] = (RANDOM, AROUND),
    where: Where = Where(),  # noqa: B008  it is frozen
    work: str | Path | None = None,
    progress: Progress | None = None,
) -> SubnetReport:
    """Search a supernet for the best subnet of a budget.

    Args:
        supernet: the file that `intaglio.models.supernet` wrote.
        budget: ``3.1bits`` a weight of the layers that have a choice, ``1.5MB`` for all, or
            ``12ms`` for a step of one token.
        data: text or tokens that nothing was tuned on.
        seed: of what is drawn.
        evaluations: how many assignments are tried, at random and around the best.
        where: where evaluations run; the result is the same.
        work: where each finished evaluation is kept, for a run that is cut off to go on.
        progress: is told each phase.

    Raises:
        OptionError: if the budget cannot be read, or nothing meets it: the nearest is told.
        SourceError: if the file is no supernet.
        InputError: if the data does not fit.
        JobError: if an evaluation cannot be run.
    """
    wanted = Budget.read(budget)
    if seed < 0:
        raise OptionError(f"--seed is {seed}; it should be 0 or more.")
    clock = Clock(progress)
    with clock.phase("load"):
        held, read = _loaded(Path(supernet), data)
        module = restore(held)
    sizes = Sizes(module)
    if wanted.unit == "ms":
        with clock.phase("measure"):
            sizes = Sizes(module, {b: _ms(supernet, {"*": b}, clock) for b in BITS})
    require_met(wanted, sizes)
    kept = None
    if work is not None:
        with Path(supernet).open("rb") as file:
            kept = Kept(Path(work), [file_digest(file, "sha256").hexdigest(), data_hash(data)])
    with clock.phase("search"), where.open() as pool:
        tried = search(
            pool,
            pool.share((held, read)),
            sizes,
            wanted,
            seed=seed,
            evaluations=evaluations,
            kept=kept,
            done=lambda n, total: clock.report(f"{n} of {total}", n / total),
        )
    fitting = sorted(
        (each for each in tried if each.costs(wanted.unit) <= wanted.limit),
        key=lambda each: (each.loss, each.mean),
    )
    layers = tuple(super_layers(module))
    found = SubnetReport(budget=wanted, layers=layers, tried=tuple(tried), taken=fitting[0])
    if wanted.unit != "ms":
        return found
    with clock.phase("measure"):
        return _in_time(found, supernet, fitting, clock)


def make_subnet(
    supernet: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    work: str | Path | None = None,
    **how: Any,
) -> SubnetReport:
    """Search a supernet for the best subnet of a budget, and write it as a checkpoint.

    Args:
        supernet: the file that `intaglio.models.supernet` wrote.
        out: the checkpoint to write, which `export` takes.
        force: replace what is at `out`.
        work: as `search_subnet` has it; else a folder beside `out`, gone when that is there.
        **how: further arguments of `search_subnet`.

    Raises:
        OptionError: as of `search_subnet`, or if `out` is there, or no place for a file.
        IntaglioError: as of `search_subnet`.
    """
    require_file(out, force=force)
    folder = Path(work or f"{out}.work")
    found = search_subnet(supernet, work=folder, **how)
    held = read_container(Path(supernet))[1]
    assert isinstance(held, Mapping)
    with output(out) as draft:
        torch.save(subnet(held, found.bits), draft)
    if work is None:
        rmtree(folder, ignore_errors=True)
    return replace(found, out=Path(out))


def _loaded(supernet: Path, data: str | Path) -> tuple[Mapping[str, Any], Data]:
    """What the file holds, and data for what the model takes."""
    held = None if supernet.is_dir() else read_container(supernet)[1]
    if not isinstance(held, Mapping):
        raise SourceError(
            f"{supernet} is no supernet, of which a budget chooses the bits of layers. Make one of "
            "a checkpoint: python -P -m intaglio.models.supernet BASE.pt --text FILE --out "
            "SUPERNET.pt."
        )
    module = restore(held)
    model = find(str(held["model"]))
    example = model.inputs(model.configure(held["config"]), 2, 8, torch.Generator())
    return held, read_data(data, in_memory(module, LoadOptions(inputs=example)))


def _in_time(
    found: SubnetReport, supernet: str | Path, fitting: Sequence[Tried], clock: Clock
) -> SubnetReport:
    """The first of `fitting` whose step is measured to be in time.

    Raises:
        OptionError: if none is.
    """
    taken: list[float] = []
    for each in fitting[:MEASURED]:
        report = replace(found, taken=each)
        taken.append(_ms(supernet, report.bits, clock))
        if taken[-1] <= found.budget.limit:
            return replace(report, ms=taken[-1])
    raise OptionError(
        f"No subnet takes {found.budget}: of those that should, the {len(taken)} best were "
        f"measured, and the nearest took {min(taken):.4g}ms. Give more time."
    )


def _ms(supernet: str | Path, bits: Mapping[str, int], clock: Clock) -> float:
    """Milliseconds that a step of one token takes with these bits: the median of its calls."""
    said = ", ".join(f"{b} bits" for b in sorted(set(bits.values())))
    clock.report(said, None)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        export(supernet, out, bits=bits, verify=False, portable=False)
        settings = ProfileSettings(contexts=[16], prompts=[1], target="ort", ops=False, duration=1)
        found = profile([out], settings)
    steps = [each for each in found.measured[0].timings if each.phase.kind == "step"]
    return 1e3 * steps[0].median


def _row(tried: Tried) -> dict[str, Any]:
    time = {} if tried.ms is None else {"ms": tried.ms}
    return {"bits": tried.mean, "bytes": tried.bytes, "loss": tried.loss, **time}
