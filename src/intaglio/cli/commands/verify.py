"""`intaglio verify`: a bundle against its source."""

from pathlib import Path
from typing import Annotated, Unpack

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command

from .load_flags import LoadFlags, loading
from .options import (
    BundlePath,
    Data,
    Graph,
    LoadRecipe,
    Signature,
    Steps,
    Target,
    Tolerance,
    by_graph,
    limits,
    open_bundle,
    require_consent,
)


@command
def verify_(
    console: Console,
    bundle: BundlePath,
    against: Annotated[Path, typer.Option(metavar="SOURCE", help="The checkpoint it came from.")],
    recipe: LoadRecipe = None,
    data: Data = None,
    steps: Steps = 512,
    tolerance: Tolerance = None,
    target: Annotated[
        Target, typer.Option(help="What runs: ONNX Runtime, or TensorRT on a GPU.")
    ] = Target.ORT,
    graph: Graph = None,
    require_signature: Signature = None,
    lowered: Annotated[
        bool,
        typer.Option("--lowered", help="Run the graph for TensorRT in ONNX Runtime: needs no GPU."),
    ] = False,
    thorough: Annotated[
        bool,
        typer.Option("--thorough", help="Try every token id, the whole context, and more rows."),
    ] = False,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Name the first node that diverges.")
    ] = False,
    behaviour: Annotated[
        Path | None,
        typer.Option(
            metavar="SUITE.jsonl",
            help="Compare answers to questions instead: what is refused, and what is answered.",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:NAME", help="What judges answers; words without one."),
    ] = None,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each question.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float | None, typer.Option(help="Draw from this share.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws, the same for both.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Ends an answer; repeatable.")
    ] = None,
    **load: Unpack[LoadFlags],
) -> int:
    """Compare a bundle with its source, step by step: outputs and carried states.

    Examples:
        intaglio verify bundle --against model.pt
        intaglio verify bundle --against model.pt --thorough --data text.txt
        intaglio verify bundle --against model.pt --bisect
    """
    from intaglio import verify
    from intaglio.cli import behaving, summary

    for name, given in (("--judge", judge), ("--stop", stop), ("--top-p", top_p)):
        if given is not None and behaviour is None:
            raise typer.BadParameter(f"{name} is for --behaviour")
    allowed, options = limits(tolerance), loading(load)  # what is typed wrongly is told first
    opened = open_bundle(bundle, require_signature)
    if behaviour is not None:
        if target is Target.TRT:
            require_consent(opened, graph, target.value, allowed=load.get("allow_code"))
        asked = {
            "target": target.value,
            "graph": graph,
            "judge": judge,
            "stop": stop,
            "tokens": answer_tokens,
            "samples": samples,
            "seed": seed,
            "temperature": temperature,
            "top_p": top_p,
            "recipe": recipe,
        }
        found = behaving.behaviour_of(console, opened, against, behaviour, allowed, asked, options)
        behaving.show(console, found)
        console.result(found.to_json())
        return 0 if found.passed else 3
    if target is Target.TRT and not lowered:
        require_consent(opened, graph, target.value, allowed=load.get("allow_code"))
    made = {each.prepare for each in opened.manifest.graphs.values()}
    made |= {name for name, each in opened.manifest.graphs.items() if each.derived}
    names = [graph] if graph is not None else [name for name in opened.graphs if name not in made]
    reports = {}
    for name in names:
        with console.progress("verify") as progress:
            reports[name] = verify(
                opened,
                against,
                graph=name,
                data=data,
                target=target.value,
                lowered=lowered,
                steps=steps,
                tolerance=allowed,
                thorough=thorough,
                bisect=bisect,
                progress=progress,
                recipe=recipe,
                **options,
            )
        if len(names) > 1:
            console.text(f"graph    {name}")
        console.text(reports[name].summary())
        summary.show_parity(console, reports[name].to_json())
    console.result(by_graph({name: report.to_json() for name, report in reports.items()}))
    return 0 if all(report.passed for report in reports.values()) else 3
