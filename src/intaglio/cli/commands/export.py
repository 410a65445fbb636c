"""`intaglio export`: a trained checkpoint to a verified bundle."""

from enum import StrEnum
from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any, Unpack

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command
from intaglio.cli.known_names import passes_like

from .budgets import SearchFlags, beside, require_none, search_before, show
from .load_flags import LoadFlags, loading
from .options import (
    Data,
    Flavour,
    Tolerance,
    compute_capabilities,
    limits,
    methods,
)


class Cache(StrEnum):
    """Layouts of key-value caches."""

    STATIC = "static"
    GROW = "grow"


class FolderChoice(StrEnum):
    """What the folder is, beside a bundle."""

    BUNDLE = "bundle"
    GENAI = "genai"
    TRITON = "triton"


class Accuracy(StrEnum):
    """How ONNX Runtime multiplies by weights of few bits."""

    AUTO = "auto"
    FAST = "fast"
    FINE = "fine"
    EXACT = "exact"


class ExportFlags(LoadFlags, SearchFlags):
    """How to load a source, and how to search a supernet."""


@command
def export_(
    console: Console,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A trained checkpoint.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The bundle to write.")],
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Options, as a bundle's recipe.toml.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Engines with commas, as ort,trt.", show_default="ort"),
    ] = None,
    graph: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=METHOD", help="A graph of the bundle, a method of the module; repeatable."
        ),
    ] = None,
    pass_: Annotated[
        list[str] | None,
        typer.Option(
            "--pass",
            metavar="NAME[:TOML]",
            help="A pass to run; repeatable.",
            autocompletion=passes_like,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="3.1bits|1.5MB|12ms",
            help="Of a supernet, export the best subnet, searched on --calib.",
        ),
    ] = None,
    calib: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="What passes learn from: .npz, .txt, pictures, or a folder."
        ),
    ] = None,
    data: Data = None,
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where finished layers and evaluations are kept, to resume."
        ),
    ] = None,
    kv: Annotated[
        Cache | None, typer.Option(help="Layout of key-value caches.", show_default="static")
    ] = None,
    ort_accuracy: Annotated[
        Accuracy | None,
        typer.Option(
            help="Activations for weights of few bits: in 8 bits, in two parts of 8 bits, or "
            "in full precision, to verify with; auto tries.",
            show_default="auto",
        ),
    ] = None,
    min_shapes: Annotated[
        str,
        typer.Option(
            "--min-shapes", "--minShapes", metavar="NAME:1x1,...", help="Least shapes to serve."
        ),
    ] = "",
    opt_shapes: Annotated[
        str,
        typer.Option("--opt-shapes", "--optShapes", metavar="NAME:1x16,...", help="Usual shapes."),
    ] = "",
    max_shapes: Annotated[
        str,
        typer.Option(
            "--max-shapes", "--maxShapes", metavar="NAME:1x512,...", help="Largest shapes."
        ),
    ] = "",
    shapes: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:MIN:OPT:MAX", help="All three of an input; repeatable."),
    ] = None,
    flavour: Annotated[
        Flavour | None, typer.Option(help="Which TensorRT builds.", show_default="auto")
    ] = None,
    sm: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Compute capabilities of TensorRT's kernels, as 87,90."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|fp16",
            help="What TensorRT multiplies in; ort is in fp32.",
            show_default="fp32",
        ),
    ] = None,
    tolerance: Tolerance = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Steps to compare.", show_default="512")
    ] = None,
    check_passes: Annotated[
        bool, typer.Option("--check-passes", help="Hold each exact pass to its promise.")
    ] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare the bundle with its source.")
    ] = False,
    require_parity: Annotated[
        bool, typer.Option("--require-parity", help="Fail if an engine could not be compared.")
    ] = False,
    require_target: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Targets without which there is to be no bundle, as trt."
        ),
    ] = None,
    no_portable: Annotated[
        bool, typer.Option("--no-portable", help="Leave the portable graph out.")
    ] = False,
    layout: Annotated[
        FolderChoice | None,
        typer.Option(
            help="A bundle alone, or a folder of onnxruntime-genai or a model of Triton too.",
            show_default="bundle",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what an export would do; write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    **flags: Unpack[ExportFlags],
) -> None:
    """Export a trained checkpoint to a verified bundle.

    Examples:
        intaglio export model.pt -o bundle
        intaglio export net.safetensors --model shop.net:build -o bundle
        intaglio export hf-folder -o bundle --pass 'gptq:bits=4' --calib text.txt
        intaglio export model.pt -o bundle --target ort,trt --max-shapes ids:4x512
        intaglio export supernet.pt -o bundle --budget 3.5bits --calib text.txt
    """
    from intaglio import export
    from intaglio.cli import summary
    from intaglio.exporter.options.served_shapes import ServedShapes

    given = ServedShapes.parse(
        minimum=min_shapes, optimum=opt_shapes, maximum=max_shapes, shapes=shapes or []
    )
    told: dict[str, Any] = {**flags}
    load: Any = {name: told[name] for name in LoadFlags.__annotations__}
    how: Any = {name: told[name] for name in SearchFlags.__annotations__}
    options = loading(load, methods(graph))
    if budget is None:
        kernels = "trt" in (target or "") or recipe is not None
        require_none(how, kernels=kernels, passes=bool(pass_) or recipe is not None)
    with console.progress() as progress:
        made = None
        if budget is not None:
            made = search_before(
                source,
                out,
                load,
                how,
                budget=budget,
                data=calib,
                work=None if dry_run else work or beside(out),
                force=force or dry_run,
                progress=progress,
            )
            options["bits"], calib = made.bits, None
        report = export(
            source,
            out,
            recipe=recipe,
            targets=target.split(",") if target else None,
            passes=pass_ or None,
            calib=calib,
            data=data,
            work=work,
            kv=kv.value if kv else None,
            ort_accuracy=ort_accuracy.value if ort_accuracy else None,
            shapes=given if given.ranges else None,
            dtype=dtype,
            flavour=None if flavour is None else flavour.value,
            sm=None if sm is None else compute_capabilities(sm),
            tolerance=limits(tolerance) or None,
            check_passes=check_passes or None,
            verify=False if no_verify else None,
            steps=steps,
            require_parity=require_parity,
            require_target=require_target.split(",") if require_target else (),
            force=force,
            dry_run=dry_run,
            jobs=how["jobs"],
            ray=how["ray"] if made is None else None,
            portable=False if no_portable else None,
            layout=None if layout is None else layout.value,
            progress=progress,
            **options,
        )
    if made is not None:
        show(console, made, **how)
        rmtree(beside(out), ignore_errors=True)
    for note in report.notes:
        console.message(f"note: {note}")
    for phase, seconds in report.seconds.items():
        console.detail(f"{phase}: {seconds:.1f} s")
    summary.show(console, report.manifest, str(out), {}, report.estimate)
    searched = {} if made is None else {"search": made.to_json()}
    console.result({**report.to_json(), **searched})
