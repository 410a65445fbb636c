"""Bytes become text as soon as they can, and never steer a terminal."""

from dataclasses import replace
from pathlib import Path

import pytest

from intaglio.cli.text import ByteCodec, IdCodec, codec
from intaglio.errors import InputError
from intaglio.runtime import Manifest
from intaglio.runtime.manifest import FILE_NAME, TensorSpec


def test_a_character_comes_with_its_last_byte() -> None:
    words = ByteCodec()
    ids = words.encode("né")

    assert ids == [0x6E, 0xC3, 0xA9]
    assert [words.decode(token) for token in ids] == ["n", "", "é"]


@pytest.mark.parametrize("token", [0x00, 0x1B, 0x0D, 0x7F, 0xFF])
def test_what_is_no_text_is_shown_as_such(token: int) -> None:
    """Escape, carriage return and bytes of no character come as U+FFFD."""
    assert ByteCodec().decode(token) == "\N{REPLACEMENT CHARACTER}"


def test_lines_and_tabs_are_text() -> None:
    assert "".join(map(ByteCodec().decode, b"a\tb\n")) == "a\tb\n"


def test_other_vocabularies_are_given_as_ids() -> None:
    words = IdCodec(1000)

    assert words.encode("7 999") == [7, 999]
    assert words.decode(12) == "12 "
    with pytest.raises(InputError, match="below 1000"):
        words.encode("7 1000")
    with pytest.raises(InputError, match="no tokenizer"):
        words.encode("hello")


def test_the_codec_follows_the_bundle(bundle: Path) -> None:
    """The vocabulary decides; what is no language model is refused."""
    manifest = Manifest.load(bundle / FILE_NAME)
    wide = TensorSpec("logits", "float32", ("batch", "time", 1000))
    features = TensorSpec("x", "float32", ("batch", "time", 3))

    assert isinstance(codec(manifest), ByteCodec)
    assert isinstance(codec(replace(manifest, outputs=(wide,))), IdCodec)
    with pytest.raises(InputError, match=r"takes x \[batch, time, 3\].*--inputs"):
        codec(replace(manifest, inputs=(features,)))
