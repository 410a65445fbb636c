"""Options of a search for a budget, and its table, for every command that searches a supernet."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Unpack

import typer

from intaglio.cli.console import Console
from intaglio.errors import OptionError
from intaglio.places import require_file

from .load_flags import LoadFlags

if TYPE_CHECKING:
    from intaglio.exporter.options.clock import Progress
    from intaglio.exporter.subnet import SubnetReport


class SearchFlags(TypedDict):
    """A command takes them as ``**how: Unpack[SearchFlags]``, and hands on what `searching` reads.

    A flag that was not given is None.
    """

    evaluations: Annotated[
        str | None,
        typer.Option(
            metavar="N,N",
            help="Of a budget: tried at random, and around the best.",
            show_default="100,50",
        ),
    ]
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of what a search draws.", show_default="0")
    ]
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Processes at a time: evaluations, layers of passes, or kernels of --target trt.",
            show_default="1; of kernels one per processor",
        ),
    ]
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A Ray cluster that runs them, as HOST:6379 or auto."),
    ]
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write a page with the best subnet of each size."),
    ]


def searching(flags: SearchFlags) -> dict[str, Any]:
    """The flags as `search_subnet` takes them.

    Raises:
        typer.BadParameter: if one is malformed.
    """
    from intaglio.jobs import Where

    found: dict[str, Any] = {}
    if flags["evaluations"] is not None:
        counts = flags["evaluations"].split(",")
        if len(counts) != 2 or not all(each.isdecimal() for each in counts):
            raise typer.BadParameter("give two numbers, as 100,50", param_hint="--evaluations")
        found["evaluations"] = (int(counts[0]), int(counts[1]))
    if flags["seed"] is not None:
        found["seed"] = flags["seed"]
    return {**found, "where": Where(flags["jobs"] or 1, flags["ray"])}


def require_page(path: Path | None) -> None:
    """Hold the place of a page to be one, and what draws it to be installed.

    Raises:
        OptionError: if nothing can be written there.
        ModuleNotFoundError: if nothing can be drawn.
    """
    if path is not None:
        require_file(path)
        import intaglio.report.budgets  # noqa: F401


def beside(out: Path) -> Path:
    """Where evaluations are kept until the bundle at `out` is there."""
    return out.with_name(f"{out.name}.work")


def require_none(flags: SearchFlags, *, kernels: bool, passes: bool) -> None:
    """Refuse what says something of a search where there is none.

    Layers of `passes` are jobs as well, here or on a cluster, and `kernels` are, here.

    Raises:
        OptionError: if there is something.
    """
    told = {*(["jobs"] if kernels or passes else []), *(["ray"] if passes else [])}
    given = [name for name, value in flags.items() if value is not None and name not in told]
    if given:
        ours = {"jobs": ", of layers of --pass, or of kernels for --target trt",
                "ray": ", or of layers of --pass"}  # fmt: skip
        of = ours.get(given[0], "") if len(given) == 1 else ""
        raise OptionError(f"--{given[0]} is of a search, which --budget asks for{of}.")


def search_before(
    supernet: Path,
    out: Path,
    load: LoadFlags,
    flags: SearchFlags,
    *,
    budget: str,
    data: Path | None,
    work: Path | None,
    force: bool,
    progress: "Progress",
) -> "SubnetReport":
    """The search of an export, whose bundle has its place.

    Raises:
        typer.BadParameter: if there is nothing to judge by, or the bits are given already.
        IntaglioError: as of `search_subnet`, or if no bundle can be written there.
    """
    from intaglio.exporter.subnet import search_subnet
    from intaglio.exporter.writing.bundle_writer import check_place

    if data is None:
        raise typer.BadParameter("needs --calib, text to judge by", param_hint="--budget")
    if load["bits"]:
        raise typer.BadParameter("--bits says them already", param_hint="--budget")
    check_place(out, force=force)
    require_page(flags["report"])
    return search_subnet(
        supernet, budget=budget, data=data, work=work, progress=progress, **searching(flags)
    )


def show(console: Console, made: "SubnetReport", **flags: Unpack[SearchFlags]) -> None:
    """Print the best subnet of each size, and write the page of them."""
    timed = made.budget.unit == "ms"
    rows = [
        [
            f"{each.mean:.3f}",
            f"{each.bytes / 1e6:.3f}",
            *([f"{each.ms:.4g}"] if timed else []),
            f"{each.loss:.4f}",
            "taken" if each is made.taken else "",
        ]
        for each in made.pareto
    ]
    console.table(rows, ["bits a weight", "MB", *(["ms"] if timed else []), "loss", ""])
    took = "" if made.ms is None else f"; a step took {made.ms:.4g} ms"
    console.text(f"the best of {len(made.tried)} within {made.budget}{took}")
    if flags["report"] is not None:
        from intaglio.report.budgets import write_page

        write_page(made.to_json(), flags["report"])
