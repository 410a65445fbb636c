"""A process of its own for what is measured, compiled or built: a line each way, in JSON.

The child's stdout is the channel; whatever it prints meanwhile goes to its stderr, which is kept
for the message should it die.  A child ends when its parent does, since its stdin ends then.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from intaglio import errors
from intaglio.errors import IntaglioError, ProfileError

Methods = Mapping[str, Callable[..., Any]]
Progress = Callable[[str, float | None], None]

_PATIENCE = 5  # seconds that a child is given to end


class Worker:
    """The parent's end of a child process that runs the module `module`, which calls `serve`."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str] = (),
        *,
        does: str = "measured",
        fault: type[IntaglioError] = ProfileError,
        relief: str = "give a smaller --batch, --context or --prompt-length",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Name the child as errors speak of it; it starts with the context.

        Args:
            name: what the child is about.
            module: what it runs.
            arguments: its command line.
            does: what it does with `name`, in an error's words.
            fault: the error to raise if it ends instead of answering.
            relief: what to do if it may have ended for want of memory.
            environment: its environment; None for that of the parent.
        """
        self.name = name
        self._command = [sys.executable, "-P", "-m", module, *arguments]
        self._does, self._fault, self._relief = does, fault, relief
        self._environment = environment

    def __enter__(self) -> Self:
        """Start the child."""
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(  # noqa: S603 - a module of ours
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            encoding="utf-8",
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._process
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            process.wait(0 if error else _PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
        self._said.close()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def call(self, method: str, progress: Progress | None = None, **arguments: Any) -> Any:
        """What `method` of the child returns; with `progress`, the method is given one to call.

        Raises:
            IntaglioError: the one that the child raised, or `fault` if the child ended instead of
                answering.
            RuntimeError: if it failed in another way; with its traceback.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            request = [method, arguments, progress is not None]
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer: dict[str, Any] = {"progress": None}
        while "progress" in answer:
            line = self._process.stdout.readline()
            if not line.endswith("\n"):
                raise self._ended()
            answer = json.loads(line)
            if progress is not None and "progress" in answer:
                progress(*answer["progress"])
        if "error" in answer:
            kind = getattr(errors, answer["error"], None)
            if isinstance(kind, type) and issubclass(kind, IntaglioError):
                raise _again(kind, answer["message"])
            raise RuntimeError(f"{self.name}: {answer['message']}")
        return answer["result"]

    def _ended(self) -> IntaglioError:
        code = self._process.wait()
        self._said.seek(0)
        last = (self._said.read().strip().splitlines() or [""])[-1]
        if code < 0:
            name = signal.Signals(-code).name
            hint = (
                f"The system does that when memory runs out: {self._relief}."
                if name == "SIGKILL"
                else "Try again; if it happens again, report it."
            )
            return self._fault(
                f"The process that {self._does} {self.name} was ended by {name}. {hint}"
            )
        said = last or "no message"
        return self._fault(
            f"The process that {self._does} {self.name} ended with code {code}: {said}"
        )


def serve(methods: Methods) -> None:
    """Answer the parent until it closes the channel; the child's whole program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)

        def tell(message: Mapping[str, Any]) -> None:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

        for line in sys.stdin:
            method, arguments, watched = json.loads(line)
            if watched:
                arguments["progress"] = lambda *given: tell({"progress": given})
            tell(_answer(methods[method], arguments))


def _answer(method: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"result": method(**arguments)}
    except IntaglioError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception:  # noqa: BLE001 - the parent raises it
        return {"error": "", "message": traceback.format_exc()}


def _again(kind: type[IntaglioError], message: str) -> IntaglioError:
    """The error of the child, whose constructor may take something else than its message."""
    error = kind.__new__(kind)
    error.args = (message,)
    return error
