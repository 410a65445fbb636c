"""The command `intaglio`: parse, call one function of the library, print.

Everything beyond numpy, ONNX Runtime, typer and rich is imported by the command that needs it, so
that `--help` and the runtime's commands work without any extra.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from intaglio import __version__

from . import catalogue, doctor
from .console import Console
from .frame import app, command

Model = Annotated[
    str | None, typer.Option(metavar="NAME|PKG.MOD:FACTORY", help="What the weights are of.")
]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="What the model is built with.")]
Key = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which state dict, if there are several.")
]
ImportFrom = Annotated[
    list[Path] | None, typer.Option(metavar="DIR", help="Where the factory's module lies.")
]

TOKENS = 100  # generated unless --steps says otherwise

Steps = Annotated[int, typer.Option(min=1, metavar="N", help="Steps to compare.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.")]
Tolerance = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Limit of an output's or a state's error; repeatable."),
]


class Kind(StrEnum):
    """What `list` lists."""

    OPS = "ops"
    PASSES = "passes"
    MODELS = "models"
    TARGETS = "targets"


class Cache(StrEnum):
    """Layouts of key-value caches."""

    STATIC = "static"
    GROW = "grow"


@command
def export_(
    console: Console,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A trained checkpoint.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The bundle to write.")],
    target: Annotated[str, typer.Option(metavar="LIST", help="Engines, with commas.")] = "ort",
    model: Model = None,
    config: Config = None,
    key: Key = None,
    import_from: ImportFrom = None,
    pass_: Annotated[
        list[str] | None,
        typer.Option("--pass", metavar="NAME[:TOML]", help="A pass to run; repeatable."),
    ] = None,
    kv: Annotated[Cache, typer.Option(help="Layout of key-value caches.")] = Cache.STATIC,
    min_shapes: Annotated[
        str, typer.Option("--minShapes", metavar="NAME:1x1,...", help="Least shapes to serve.")
    ] = "",
    opt_shapes: Annotated[
        str, typer.Option("--optShapes", metavar="NAME:1x16,...", help="Usual shapes.")
    ] = "",
    max_shapes: Annotated[
        str, typer.Option("--maxShapes", metavar="NAME:1x512,...", help="Largest shapes.")
    ] = "",
    shapes: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:MIN:OPT:MAX", help="All three of an input; repeatable."),
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="fp32", help="Type of the weights.")] = "fp32",
    tolerance: Tolerance = None,
    steps: Steps = 512,
    check_passes: Annotated[
        bool, typer.Option("--check-passes", help="Hold each exact pass to its promise.")
    ] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare the bundle with its source.")
    ] = False,
    require_parity: Annotated[
        bool, typer.Option("--require-parity", help="Fail if an engine could not be compared.")
    ] = False,
    no_portable: Annotated[
        bool, typer.Option("--no-portable", help="Leave the portable graph out.")
    ] = False,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let --pass FILE.py:FUNCTION run that file.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
) -> None:
    """Export a trained checkpoint to a verified bundle."""
    from intaglio import export
    from intaglio.exporter.shapes import Shapes

    from . import summary

    given = Shapes.parse(
        minimum=min_shapes, optimum=opt_shapes, maximum=max_shapes, shapes=shapes or []
    )
    with console.progress() as progress:
        report = export(
            source,
            out,
            targets=target.split(","),
            model=model,
            config=config,
            key=key,
            import_from=import_from or [],
            passes=pass_ or [],
            kv=kv.value,
            shapes=given if given.ranges else None,
            dtype=dtype,
            tolerance=_limits(tolerance),
            check_passes=check_passes,
            verify=not no_verify,
            steps=steps,
            require_parity=require_parity,
            force=force,
            portable=not no_portable,
            allow_code=allow_code,
            progress=progress,
        )
    for note in report.notes:
        console.message(f"note: {note}")
    for phase, seconds in report.seconds.items():
        console.detail(f"{phase}: {seconds:.1f} s")
    summary.show(console, report.manifest, str(out), {})
    console.result(report.to_json())


@command
def run_(
    console: Console,
    bundle: BundlePath,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Text to continue; token ids if not of bytes."),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Arrays to step through instead.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.npz", help="Keep the outputs.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most; 100 tokens, or all arrays.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from this share.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draw the same again.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End after this text; repeatable.")
    ] = None,
) -> None:
    """Run a bundle: continue a text as it is generated, or step through arrays."""
    if (prompt is None) == (inputs is None):
        raise typer.BadParameter("give --prompt or --inputs")
    if out is not None and inputs is None:
        raise typer.BadParameter("--out keeps the outputs of --inputs")
    from intaglio.runtime import Session

    from . import stream

    session = Session.load(bundle)
    if inputs is not None:
        outputs, latency = stream.step_arrays(session, stream.read_arrays(inputs), steps)
        if out is not None:
            stream.write_arrays(out, outputs)
        shapes = {name: list(array.shape) for name, array in outputs.items()}
        console.table([[name, str(shape)] for name, shape in shapes.items()], ["output", "shape"])
        console.result({"outputs": shapes, "latency": latency.to_json()})
        console.message(str(latency))
    elif prompt is not None:
        console.stream(prompt)
        try:
            made, text, latency = stream.continue_text(
                session,
                prompt,
                stop or [],
                console.stream,
                max_new_tokens=steps or TOKENS,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
            )
        finally:
            console.stream("\n")
        console.result({"tokens": made, "text": text, "latency": latency.to_json()})
        console.message(str(latency))


@command
def verify_(
    console: Console,
    bundle: BundlePath,
    against: Annotated[Path, typer.Option(metavar="SOURCE", help="The checkpoint it came from.")],
    model: Model = None,
    config: Config = None,
    key: Key = None,
    import_from: ImportFrom = None,
    steps: Steps = 512,
    tolerance: Tolerance = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Name the first node that diverges.")
    ] = False,
) -> int:
    """Compare a bundle with its source, step by step: outputs and carried states."""
    from intaglio import verify

    from . import summary

    with console.progress() as progress:
        report = verify(
            bundle,
            against,
            model=model,
            config=config,
            key=key,
            import_from=import_from or [],
            steps=steps,
            tolerance=_limits(tolerance),
            bisect=bisect,
            progress=progress,
        )
    console.text(report.summary())
    summary.show_parity(console, report.to_json())
    console.result(report.to_json())
    return 0 if report.passed else 3


def _limits(texts: list[str] | None) -> dict[str, float]:
    limits = {}
    for text in texts or []:
        name, _, value = text.rpartition("=")
        try:
            limits[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--tolerance")
    return limits


@command
def inspect_(console: Console, bundle: BundlePath) -> int:
    """Show what a bundle holds: inputs, outputs, states, passes, parity, files."""
    from intaglio.runtime import Bundle

    from . import summary

    opened = Bundle.open(bundle)
    damage = summary.damage(opened)
    summary.show(console, opened.manifest, str(bundle), damage)
    console.result({"manifest": opened.manifest.to_json(), "damage": damage})
    return 1 if damage else 0


@command
def doctor_(console: Console) -> None:
    """Show what can be built and run here, and what is missing."""
    diagnosis = doctor.diagnose()
    report = diagnosis.to_json()
    console.text(f"intaglio {__version__}, Python {report['python']}, {report['platform']}")
    for ability, found in report["can"].items():
        lack = f"no, missing {', '.join(found['missing'])}"
        console.text(f"{ability}: {'yes' if found['ok'] else lack}")
    console.text(
        "target ort: " + (diagnosis.engine_error or f"yes, with {', '.join(diagnosis.providers)}")
    )
    console.text("\npackages")
    console.table(
        [
            [entry.name, entry.installed or "missing", f">={entry.minimum}", entry.extra or "-"]
            for entry in diagnosis.packages
        ],
        ["name", "installed", "asked for", "extra"],
    )
    console.result(report)


@command
def list_(
    console: Console,
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="ops, passes, models or targets.")],
) -> None:
    """List the operators, passes, models or targets that intaglio knows."""
    entries: list[dict[str, Any]] = getattr(catalogue, kind)()
    head = list(entries[0])
    console.table([[_cell(entry[key]) for key in head] for entry in entries], head)
    console.result({kind: entries})


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={default!r}" for key, default in value.items()) or "-"
    return str(value)


def main() -> None:
    """Run the command line and exit."""
    # Not app(): that would replace sys.excepthook.
    typer.main.get_command(app)(prog_name="intaglio")
