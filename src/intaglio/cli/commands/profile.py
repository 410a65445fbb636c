"""`intaglio profile`: latencies, memory and operators of bundles, side by side."""

from pathlib import Path
from typing import Annotated, Unpack

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command

from .load_flags import LoadFlags, loading
from .options import (
    BundlePath,
    Graph,
    LoadRecipe,
    numbers,
    open_bundle,
    require_consent,
    whole_numbers,
)


@command
def profile_(
    console: Console,
    bundle: BundlePath,
    others: Annotated[
        list[Path] | None, typer.Argument(metavar="[OTHER]...", help="Further bundles.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="SOURCE", help="Measure the source in PyTorch, too."),
    ] = None,
    recipe: LoadRecipe = None,
    contexts: Annotated[
        str | None,
        typer.Option(
            "--context", metavar="N,...", help="Tokens before a step.", show_default="128,1024,4096"
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompt-length", metavar="N,...", help="Tokens of a prefill.", show_default="512"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Rows.")] = 1,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads.", show_default="as the engine chooses")
    ] = None,
    capacity: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens that caches have room for at first.")
    ] = None,
    target: Annotated[str, typer.Option(metavar="NAME", help="Engine of the bundles.")] = "auto",
    graph: Graph = None,
    warmup: Annotated[
        float,
        typer.Option("--warm-up", "--warmUp", metavar="MS", help="Uncounted calls before each."),
    ] = 200,
    duration: Annotated[
        float, typer.Option(metavar="S", help="Seconds of each measurement, at least.")
    ] = 3,
    iterations: Annotated[
        int, typer.Option(metavar="N", help="Calls of each measurement, at least.")
    ] = 10,
    percentile: Annotated[
        str, typer.Option(metavar="P,...", help="Percentiles of latency to report.")
    ] = "90,95,99",
    streams: Annotated[
        int | None,
        typer.Option(metavar="N", help="Step N sequences together, too, as a server does."),
    ] = None,
    no_ops: Annotated[
        bool, typer.Option("--no-ops", help="Do not trace operators in another process.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page with all figures.")
    ] = None,
    **load: Unpack[LoadFlags],
) -> None:
    """Measure bundles side by side: latencies, memory, and where the time goes.

    Examples:
        intaglio profile bundle
        intaglio profile bundle --against model.pt --report report.html
        intaglio profile bundle --streams 16 --context 128
        intaglio profile small large --context 128,4096 --duration 10 --threads 1
    """
    from intaglio import profile
    from intaglio.cli import profile_tables
    from intaglio.runtime import ProfileSettings

    settings = ProfileSettings(
        contexts=None if contexts is None else whole_numbers(contexts, "--context"),
        prompts=None if prompts is None else whole_numbers(prompts, "--prompt-length"),
        batch=batch,
        target=target,
        graph=graph,
        threads=threads,
        capacity=capacity,
        warmup=warmup,
        duration=duration,
        iterations=iterations,
        percentiles=numbers(percentile, "--percentile"),
        ops=not no_ops,
        streams=streams,
    )
    for each in (bundle, *(others or [])):
        require_consent(open_bundle(each, None), graph, target, allowed=load.get("allow_code"))
    with console.progress() as progress:
        found = profile(
            bundle,
            *(others or []),
            settings=settings,
            against=against,
            report=report,
            progress=progress,
            recipe=recipe,
            **loading(load),
        )
    profile_tables.show(console, found)
    for warning in found.warnings:
        console.message(f"warning: {warning}")
    for note in found.notes:
        console.message(f"note: {note}")
    if report is not None:
        console.message(f"note: the page is {report}")
    console.result(found.to_json())
