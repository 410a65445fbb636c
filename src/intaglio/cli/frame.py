"""What every command shares: the global options, and what its failures mean.

Exit codes: 0 done; 1 the user's input or environment; 2 usage; 3 parity failed, or a loop that was
required to converge; 4 a fault of intaglio; 130 interrupted.
"""

import contextlib
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from intaglio.errors import IntaglioError, MissingExtraError
from intaglio.keywords import parameters
from intaglio.quiet import heard
from intaglio.version import __version__

from . import diagnosis
from .console import WIDEST, Console, Flags
from .help import Command, Group, split_examples

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: the same on a terminal, in a pipe, in a log
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST},
)

FLAGS = {
    "json": typer.Option("--json", help="Print one JSON object instead of text."),
    "verbose": typer.Option(
        "--verbose", "-v", help="Show everything: unchanged passes too, warnings, timings."
    ),
    "quiet": typer.Option("--quiet", "-q", help="Say nothing on stderr but errors."),
    "debug": typer.Option("--debug", help="Show tracebacks, and what the tracer says."),
}


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
        with _voices(console.flags):
            code = _guarded(console, f"intaglio {context.info_name}", call)
        raise typer.Exit(code)

    _takes(run, parameters(function)[1:])
    said, examples = split_examples(inspect.getdoc(function) or "")
    name = function.__name__.rstrip("_")
    app.command(name=name, cls=Command, help=said, epilog=examples)(run)
    return function


@contextlib.contextmanager
def _voices(flags: Flags) -> Iterator[None]:
    """Send to stderr what others print, and let libraries be heard as far as was asked for."""
    with (
        contextlib.redirect_stdout(sys.stderr),
        heard() if flags.debug else contextlib.nullcontext(),
        warnings.catch_warnings(),
    ):
        if not (flags.verbose or flags.debug):
            warnings.simplefilter("ignore")
        yield


def _guarded(console: Console, name: str, call: Callable[[], int | None]) -> int:
    try:
        return call() or 0
    except IntaglioError as error:
        return console.fail(error, error.exit_code, str(error))
    except ModuleNotFoundError as error:
        extra = diagnosis.extra_of((error.name or "").partition(".")[0])
        if extra is None:
            return console.fail_as_bug(error)
        missing = MissingExtraError(name, extra)
        missing.__cause__ = error
        return console.fail(missing, missing.exit_code, str(missing))
    except (typer.BadParameter, typer.Exit, BrokenPipeError):
        raise
    except OSError as error:
        return console.fail(error, 1, f"{error.filename or name}: {error.strerror or error}.")
    except UnicodeEncodeError as error:  # half of a character: a name of bytes, or JSON's \ud800
        around = error.object[max(0, error.start - 40) : error.end + 40]
        said = f"{around!r} is no text in UTF-8. Rename the file, or mend the text."
        return console.fail(error, 1, f"{name}: {said}")
    except KeyboardInterrupt as error:
        return console.fail(error, 130, "interrupted")
    except Exception as error:  # noqa: BLE001 - the last resort of a program
        if _is_out_of_memory(error):
            said = (str(error).splitlines() or [""])[-1].strip()  # a child tells its traceback
            return console.fail(error, 1, f"{name}: there is not enough memory. ({said})")
        return console.fail_as_bug(error)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, in the words of Python, of PyTorch or of C++."""
    said = ("allocate memory", "not enough memory", "bad_alloc", "bad allocation", "MemoryError:")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


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
    """Engrave a trained PyTorch model onto an edge engine.

    Examples:
        intaglio export model.pt -o bundle
        intaglio run bundle --prompt "Once upon a time"
        intaglio export --help
    """
    context.obj = Flags(**flags)


_takes(_start, [inspect.signature(_start).parameters["_version"]])
_said, _examples = split_examples(inspect.getdoc(_start) or "")
app.callback(help=_said, epilog=_examples)(_start)
