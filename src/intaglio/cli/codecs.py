"""Text and tokens of a bundle: by its tokenizer if it has one, which needs the extra ``text``.

Without one, tokens are bytes where the vocabulary has 256 entries, and ids in decimal elsewhere.
"""

import codecs
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from intaglio.errors import InputError
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.plain_text import plain
from intaglio.runtime.tokenizer_process import Tokenizer
from intaglio.state import BATCH, TIME

BYTES = 256


class Codec(Protocol):
    """Turns text into tokens, and tokens into text as they come."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""

    def decode(self, token: int) -> str:
        """The text that one more token completes; control characters come as U+FFFD."""

    def finish(self) -> str:
        """What was held back for a character that never became whole."""

    def endings(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens that end generation, where one of `texts` should end it."""


class ByteCodec:
    """UTF-8; bytes of a character that is not complete yet are held back."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def encode(self, text: str) -> list[int]:
        """Bytes of a text."""
        return list(text.encode())

    def decode(self, token: int) -> str:
        """The characters that one more byte completes."""
        return plain(self._decoder.decode(bytes([token])))

    def finish(self) -> str:
        """Nothing: bytes that are no character were never shown."""
        return ""

    def endings(self, texts: Sequence[str]) -> list[list[int]]:
        """The bytes of each text."""
        return [self.encode(text) for text in texts]


class IdCodec:
    """Token ids in decimal, with spaces between them."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def encode(self, text: str) -> list[int]:
        """Ids of a text of numbers.

        Raises:
            InputError: if it holds anything else.
        """
        words = text.split()
        if not all(word.isdecimal() and int(word) < self._vocabulary for word in words):
            raise InputError(
                f"{text!r} should be token ids below {self._vocabulary} with spaces between them: "
                "the bundle holds no tokenizer. Give one with --tokenizer FILE."
            )
        return [int(word) for word in words]

    def decode(self, token: int) -> str:
        """The id and a space."""
        return f"{token} "

    def finish(self) -> str:
        """Nothing is held back."""
        return ""

    def endings(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        return [self.encode(text) for text in texts]


class TokenizerCodec:
    """A tokenizer of the `tokenizers` library; a text ends with one of the tokens `eos`.

    A token is part of a character, or of a word whose spaces depend on what came before, so each
    is decoded behind those before it, and held back until its last character is whole.
    """

    def __init__(
        self, content: bytes, vocabulary: int, eos: Sequence[int] = (), end: str = ""
    ) -> None:
        """Read `content`, a tokenizer.json; without `eos` the token of the text `end` ends a text.

        Raises:
            InputError: if it is none.
        """
        self._tokenizer = Tokenizer(content, "The tokenizer of the bundle")
        self._vocabulary = vocabulary
        self._eos = list(eos)
        if end and not eos and len(token := self._tokenizer.encode(end, special=False)) == 1:
            self._eos = token
        self._ids: list[int] = []
        self._shown = 0  # how many of the ids have been shown whole
        self._before = 0  # from which on they are decoded together with the next

    def chat(self, template: str, values: Mapping[str, Any]) -> list[int]:
        """Tokens of a conversation as `template` writes it, with its special tokens alone."""
        return self.encode(self._tokenizer.chat(template, values), special=False)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of a text, with those that the tokenizer puts before and behind if `special`.

        Raises:
            InputError: if there are none, or the model does not know one.
        """
        self._ids = self._tokenizer.encode(text, special=special)
        self._shown, self._before = len(self._ids), max(len(self._ids) - 4, 0)
        beyond = next((token for token in self._ids if token >= self._vocabulary), None)
        if beyond is not None:
            raise InputError(
                f"The tokenizer gives the token {beyond}, the model knows those below "
                f"{self._vocabulary}: it is not the tokenizer of this model. Give its own with "
                "--tokenizer FILE."
            )
        if not self._ids:
            raise InputError("The prompt holds no token. Give a text to continue.")
        return list(self._ids)

    def decode(self, token: int) -> str:
        """The characters that one more token completes."""
        self._ids.append(token)
        text = self._new_text()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._before, self._shown = self._shown, len(self._ids)
        return plain(text)

    def finish(self) -> str:
        """What the last tokens hold of a character, as U+FFFD."""
        text = self._new_text() if self._shown < len(self._ids) else ""
        self._before, self._shown = self._shown, len(self._ids)
        return plain(text)

    def endings(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens that end a text; `texts` themselves may be cut into tokens in many ways."""
        del texts
        return [[token] for token in self._eos]

    def _new_text(self) -> str:
        known = self._tokenizer.decode(self._ids[self._before : self._shown])
        return self._tokenizer.decode(self._ids[self._before :])[len(known) :]


def codec(entry: GraphEntry, text: Mapping[str, Any], tokenizer: bytes | None = None) -> Codec:
    """The codec of a graph: that of `tokenizer`, by the bundle's `text`.

    Without one it is what fits the vocabulary, the last axis of the first output.

    Raises:
        InputError: if the bundle takes other inputs than token ids, or gives other outputs than
            logits, or the tokenizer cannot be read.
    """
    inputs, (output, *_) = entry.inputs, entry.outputs
    vocabulary = output.shape[-1]
    takes_tokens = len(inputs) == 1 and inputs[0].shape == (BATCH, TIME)
    if not takes_tokens or len(output.shape) != 3 or not isinstance(vocabulary, int):
        names = ", ".join(f"{spec.name} [{', '.join(map(str, spec.shape))}]" for spec in inputs)
        raise InputError(
            f"The bundle takes {names} and gives {output.name}: that is no text. "
            "Give arrays with --inputs FILE.npz."
        )
    if tokenizer is not None:
        return TokenizerCodec(tokenizer, vocabulary, text.get("eos", ()), text.get("end", ""))
    return ByteCodec() if vocabulary == BYTES else IdCodec(vocabulary)
