"""Bytes become text as soon as they can, and never steer a terminal."""

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from intaglio.cli.codecs import ByteCodec, IdCodec, TokenizerCodec, codec
from intaglio.errors import InputError
from intaglio.runtime import Manifest
from intaglio.runtime.graph_entry import TensorSpec
from intaglio.runtime.manifest import FILE_NAME


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
    main = Manifest.load(bundle / FILE_NAME).main
    wide = TensorSpec("logits", "float32", ("batch", "time", 1000))
    features = TensorSpec("x", "float32", ("batch", "time", 3))

    assert isinstance(codec(main, {}), ByteCodec)
    assert isinstance(codec(replace(main, outputs=(wide,)), {}), IdCodec)
    with pytest.raises(InputError, match=r"takes x \[batch, time, 3\].*--inputs"):
        codec(replace(main, inputs=(features,)), {})


@pytest.fixture
def words() -> TokenizerCodec:
    """Byte-level pairs, 258 of them and one special token."""
    pieces = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab={**pieces, "th": 256, "the": 257},
                                merges=[("t", "h"), ("th", "e")]))  # fmt: skip
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<eos>"])
    return TokenizerCodec(made.to_str().encode(), 259, eos=[258])


def test_a_tokenizer_streams_whole_characters(words: TokenizerCodec) -> None:
    """Four bytes of one character are shown with the last; special tokens are not shown."""
    text = " the né 🎈!"
    ids = words.encode(text)
    words.encode("a prompt")
    pieces = [words.decode(token) for token in [*ids, 258]]

    assert len(ids) > len(text) - 2
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert pieces.count("🎈") == 1


def test_a_character_that_never_ends_comes_with_the_end(words: TokenizerCodec) -> None:
    first, *_ = words.encode("é")
    words.encode("x")

    assert words.decode(first) == ""
    assert words.finish() == "\N{REPLACEMENT CHARACTER}"
    assert words.finish() == ""


def test_a_tokenizer_ends_a_text_with_its_own_token(words: TokenizerCodec) -> None:
    """A text to stop at is cut into tokens in many ways, so it is looked for in the text."""
    assert words.endings(["stop"]) == [[258]]


def test_a_tokenizer_of_another_model_is_told(words: TokenizerCodec) -> None:
    small = TokenizerCodec(words._tokenizer.text().encode(), 200)
    with pytest.raises(InputError, match="not the tokenizer of this model"):
        small.encode("the")
    with pytest.raises(InputError, match="holds no token"):
        words.encode("")
    with pytest.raises(InputError, match="cannot be read"):
        TokenizerCodec(b"{}", 200)
