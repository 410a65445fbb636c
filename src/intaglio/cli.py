"""The command `intaglio`: parse, call one function of the library, print.

Exit codes: 0 done; 1 the user's input or environment; 2 usage; 3 parity failed; 4 a fault of
intaglio; 130 interrupted.  Everything beyond numpy, ONNX Runtime, typer and rich is imported by
the command that needs it, so that `--help` and the runtime's commands work without any extra.
"""

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from intaglio import __version__, catalogue, doctor
from intaglio.console import Console, Flags
from intaglio.errors import IntaglioError, MissingExtraError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: the same on a terminal, in a pipe, in a log
    context_settings={"help_option_names": ["-h", "--help"]},
)

FLAGS = {
    "json": typer.Option("--json", help="Print one JSON object instead of text."),
    "verbose": typer.Option("--verbose", "-v", help="Say more on stderr."),
    "quiet": typer.Option("--quiet", "-q", help="Say nothing on stderr but errors."),
    "debug": typer.Option("--debug", help="Show the traceback of an error."),
}

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.")]


def _takes(function: Callable[..., Any], own: list[inspect.Parameter]) -> None:
    """Let typer see the parameters `own` and the global options in place of **values."""
    kind = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("context", kind, annotation=typer.Context)
    flags = [
        inspect.Parameter(name, kind, default=False, annotation=Annotated[bool, option])
        for name, option in FLAGS.items()
    ]
    own = [parameter.replace(kind=kind) for parameter in own]
    function.__dict__["__signature__"] = inspect.Signature([context, *own, *flags])


def command(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """Register a command: its own options, the global ones, and what its failures mean."""

    @functools.wraps(function)
    def run(context: typer.Context, **values: Any) -> None:
        flags = Flags(**{name: values.pop(name) for name in FLAGS})
        console = Console(context.obj | flags)
        call = functools.partial(function, console, **values)
        raise typer.Exit(_guarded(console, f"intaglio {context.info_name}", call))

    _takes(run, list(inspect.signature(function, eval_str=True).parameters.values())[1:])
    app.command(name=function.__name__.rstrip("_"))(run)
    return function


def _guarded(console: Console, name: str, call: Callable[[], int | None]) -> int:
    try:
        return call() or 0
    except IntaglioError as error:
        return console.fail(error, error.exit_code, str(error))
    except ModuleNotFoundError as error:
        extra = doctor.extra_of((error.name or "").partition(".")[0])
        if extra is None:
            return console.fail_as_bug(error)
        missing = MissingExtraError(name, extra)
        return console.fail(error, missing.exit_code, str(missing))
    except (typer.BadParameter, typer.Exit, BrokenPipeError):
        raise
    except OSError as error:
        return console.fail(error, 1, f"{error.filename or name}: {error.strerror or error}.")
    except KeyboardInterrupt as error:
        return console.fail(error, 130, "interrupted")
    except Exception as error:  # noqa: BLE001 - the last resort of a program
        return console.fail_as_bug(error)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"intaglio {__version__}")
        raise typer.Exit


VERSION = typer.Option(
    "--version", callback=_print_version, is_eager=True, help="Print the version."
)


def _start(
    context: typer.Context, *, _version: Annotated[bool, VERSION] = False, **flags: bool
) -> None:
    """Engrave a trained PyTorch model onto an edge engine."""
    context.obj = Flags(**flags)


_takes(_start, [inspect.signature(_start).parameters["_version"]])
app.callback()(_start)


@command
def inspect_(console: Console, bundle: BundlePath) -> int:
    """Show what a bundle holds: inputs, outputs, states, passes, parity, files."""
    from intaglio import runtime, summary

    opened = runtime.Bundle.open(bundle)
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


class Kind(StrEnum):
    """What `list` lists."""

    OPS = "ops"
    PASSES = "passes"
    MODELS = "models"
    TARGETS = "targets"


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
    if isinstance(value, dict):
        return ", ".join(f"{key}={default!r}" for key, default in value.items()) or "-"
    return str(value)


def main() -> None:
    """Run the command line and exit."""
    # Not app(): that would replace sys.excepthook.
    typer.main.get_command(app)(prog_name="intaglio")
