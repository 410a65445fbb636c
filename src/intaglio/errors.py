"""Every error that intaglio raises on purpose, and the exit code each one means.

A message is one or more sentences that say what is wrong, where, and how to mend it, in the
user's own names: module paths of the PyTorch model, keys of the checkpoint, files as typed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar


class IntaglioError(Exception):
    """Something the user can mend: their input or their environment."""

    exit_code: ClassVar[int] = 1


class MissingExtraError(IntaglioError):
    """A package of an optional extra is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the extra {extra!r}, which is not installed. "
            f"Install it with: pip install 'intaglio[{extra}]'"
        )


class OptionError(IntaglioError):
    """An option is malformed, contradicts another one, or asks for what is not there yet."""


class SourceError(IntaglioError):
    """A checkpoint, its model or its config cannot be loaded."""


class TraceError(IntaglioError):
    """A module cannot be captured as one graph with dynamic batch and time."""


class BuildError(IntaglioError):
    """TensorRT builds no engine of a graph."""


class NotHereError(BuildError):
    """The TensorRT that is here builds for none of the GPUs that are meant."""


class DeviceError(IntaglioError):
    """An engine cannot run here: no GPU or another one, another library, or a driver that fails."""


class UnsupportedError(IntaglioError):
    """There are no kernels for what is asked: an operator's form, or a GPU."""


class JobError(IntaglioError):
    """A job ended its worker each time that it was tried, or a cluster does not run it."""


class PassError(IntaglioError):
    """A pass refuses a graph, or its options; `by` is that pass, where a pipeline ran it."""

    by: object = None


class CheckError(IntaglioError):
    """A pass that promises to be exact changed the result of the graph."""


class BundleError(IntaglioError):
    """A bundle is incomplete, changed, foreign or in the way."""


class StateError(IntaglioError):
    """A carried state does not fit the session, or a step does not fit the state."""


class FullError(IntaglioError):
    """A queue, or the number of streams, is at its limit: what is offered is not taken."""


class InputError(IntaglioError):
    """An array given to a step has the wrong name, dtype or shape."""


class ProfileError(IntaglioError):
    """A measurement could not be taken."""


class ParityError(IntaglioError):
    """An engine does not compute what its source computes."""

    exit_code: ClassVar[int] = 3


class ConvergenceError(IntaglioError):
    """A loop of a graph ended above its tolerance; `outputs` are what it gave, by name."""

    exit_code: ClassVar[int] = 3

    def __init__(self, said: str, outputs: Mapping[str, Any]) -> None:
        super().__init__(said)
        self.outputs = outputs


def reason(error: OSError) -> str:
    """What the system says, as the end of a sentence, with the file that it speaks of if any.

    ``No space left on device``, ``out/a is a file, not a folder``.
    """
    name = error.filename
    if isinstance(error, FileExistsError | NotADirectoryError) and name:
        path = Path(name)
        for each in (path, *path.parents):
            if each.is_file():
                return f"{each} is a file, not a folder"
    said = error.strerror or str(error)
    return f"{said}: {name}" if name else said
