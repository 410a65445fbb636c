"""Tokenizers, in a process of their own: a file of one may hold patterns that never end.

The `tokenizers` library aborts its process where memory runs out, and follows nested quantifiers,
paddings and replacements however far they lead.  So a child has it, with limits on memory and, for
each request, on processor time.
"""

import contextlib
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from intaglio.errors import InputError, IntaglioError
from intaglio.runtime.child_worker import Worker

CHILD = "intaglio.tokenizer_child"
FEW_TOKENS, MOST_TOKENS = 4096, 64  # of any text, and for each character beyond
FEW_LETTERS, MOST_LETTERS = (
    1 << 16,
    64,
)  # of any chat, and for each character of it and its template


class _EndedError(IntaglioError):
    """The child ended instead of answering."""


class Tokenizer:
    """A tokenizer.json, in a child that lives as long as this."""

    def __init__(self, content: str | bytes, name: str) -> None:
        """Read `content`; errors call it `name`.

        Raises:
            InputError: if it is none, or takes more time or memory than a tokenizer may.
            MissingExtraError: if the library is not installed.
        """
        self._name = name
        text = _text(content, name)
        stack = contextlib.ExitStack()
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
        worker = Worker(
            name, CHILD, does="tokenizes with", fault=_EndedError, environment=environment
        )
        self._worker = stack.enter_context(worker)
        self._close = weakref.finalize(self, stack.close)
        self.highest: int = self._call("load", content=text)
        """The largest token that it knows."""

    def text(self) -> str:
        """The file as the library writes it."""
        return str(self._call("text"))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of a text, with those that the tokenizer puts before and behind if `special`.

        Raises:
            InputError: if it takes more time or memory than it may, the text is none, or it becomes
                more tokens than a text can: a model is then run for longer than anybody meant.
        """
        found = list(self._call("encode", text=_text(text, "The text"), special=special))
        if len(found) > FEW_TOKENS + MOST_TOKENS * len(text):
            raise InputError(
                f"{self._name} makes {len(found)} tokens of {len(text)} characters: it pads, or "
                "replaces them by more. Take the padding out of the file."
            )
        return found

    def chat(self, template: str, values: Mapping[str, Any]) -> str:
        """What a chat template makes of `values`: of messages, and texts of special tokens.

        A template is a program of whoever wrote it, so it runs in a sandbox, within the limits.

        Raises:
            InputError: if it takes more time or memory than it may, refuses the messages, or writes
                far more than these.
            MissingExtraError: if the library of templates is not installed.
        """
        found = str(self._call("chat", template=_text(template, "The template"), values=values))
        given = len(template) + len(str(values))
        if len(found) > FEW_LETTERS + MOST_LETTERS * given:
            raise InputError(
                f"The chat template makes {len(found)} characters of the {given} that it and the "
                "messages have. Give another: --tokenizer DIR."
            )
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """The text that tokens stand for.

        Raises:
            InputError: if it takes more time or memory than it may.
        """
        return str(self._call("decode", tokens=list(tokens)))

    def _call(self, method: str, **arguments: Any) -> Any:
        try:
            return self._worker.call(method, **arguments)
        except _EndedError as error:
            raise InputError(
                f"{self._name} cannot be used: it fails, or takes more time or memory than a "
                f"tokenizer may. ({error}) Use it only if you know its origin."
            ) from error


def _text(content: str | bytes, name: str) -> str:
    """`content` as a child can be given it."""
    try:
        if isinstance(content, bytes):
            return content.decode()
        content.encode()
    except UnicodeError as error:
        raise InputError(f"{name} is no text in UTF-8: {error}.") from error
    return content
