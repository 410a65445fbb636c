"""What libraries say for their own developers: kept off the terminal, or cut to one line.

What a user's module prints is not theirs, and goes where it would have gone: of each text that is
written the code that writes it is looked at.
"""

import contextlib
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

# Whose words are for their own developers.
LIBRARIES = frozenset(
    "accelerate datasets functorch huggingface_hub intaglio onnx onnx_ir onnxruntime onnxscript "
    "safetensors sympy tokenizers torch torchvision tqdm transformers".split()
)


class _Voices:
    """Whether libraries are heard."""

    heard = False


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Let libraries be heard even where `quiet` would keep them off."""
    before, _Voices.heard = _Voices.heard, True
    try:
        yield
    finally:
        _Voices.heard = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep off the terminal what PyTorch's exporters log, warn and print for their developers."""
    if _Voices.heard:
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(_Sieve(sys.stdout)),
            contextlib.redirect_stderr(_Sieve(sys.stderr)),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Sieve(io.TextIOBase):
    """A stream that hands on what code other than a library's writes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Hand it on, or drop it."""
        return len(text) if _is_of_a_library() else self._stream.write(text)

    def flush(self) -> None:
        """Hand it on."""
        self._stream.flush()


def _is_of_a_library() -> bool:
    """Whether the code that writes is: that of the standard library stands for who calls it."""
    frame = inspect.currentframe()
    frame = frame.f_back.f_back if frame is not None and frame.f_back is not None else None
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package == "__main__" or package not in sys.stdlib_module_names:
            return not package or package in LIBRARIES
        frame = frame.f_back
    return True


def summary(error: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}".rstrip(": ")
