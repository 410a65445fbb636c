"""Text and tokens of a bundle: bytes where the vocabulary has 256 entries, else ids in decimal."""

import codecs
from typing import Protocol

from intaglio.errors import InputError
from intaglio.runtime.manifest import Manifest
from intaglio.state import BATCH, TIME

from .console import plain

BYTES = 256


class Codec(Protocol):
    """Turns text into tokens, and tokens into text as they come."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""

    def decode(self, token: int) -> str:
        """The text that one more token completes; control characters come as U+FFFD."""


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
                "the bundle holds no tokenizer."
            )
        return [int(word) for word in words]

    def decode(self, token: int) -> str:
        """The id and a space."""
        return f"{token} "


def codec(manifest: Manifest) -> Codec:
    """The codec that fits the vocabulary, the size of the first output's last axis.

    Raises:
        InputError: if the bundle takes other inputs than token ids, or gives other outputs than
            logits.
    """
    inputs, (output, *_) = manifest.inputs, manifest.outputs
    vocabulary = output.shape[-1]
    takes_tokens = len(inputs) == 1 and inputs[0].shape == (BATCH, TIME)
    if not takes_tokens or len(output.shape) != 3 or not isinstance(vocabulary, int):
        names = ", ".join(f"{spec.name} [{', '.join(map(str, spec.shape))}]" for spec in inputs)
        raise InputError(
            f"The bundle takes {names} and gives {output.name}: that is no text. "
            "Give arrays with --inputs FILE.npz."
        )
    return ByteCodec() if vocabulary == BYTES else IdCodec(vocabulary)
