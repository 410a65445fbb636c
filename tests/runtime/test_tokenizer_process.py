"""A tokenizer runs in a child: what aborts it, or keeps it busy, is an error of ours."""

import json
from typing import Any

import pytest
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from intaglio.errors import InputError
from intaglio.runtime.tokenizer_process import Tokenizer

WORDS = Library(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, "[UNK]"))
WORDS.pre_tokenizer = pre_tokenizers.Whitespace()


def changed(**change: Any) -> str:
    return json.dumps({**json.loads(WORDS.to_str()), **change})


def test_it_gives_what_the_library_gives() -> None:
    tokenizer = Tokenizer(WORDS.to_str(), "words")

    assert tokenizer.encode("a b c") == [0, 1, 2]
    assert tokenizer.decode([0, 1]) == "a b"
    assert tokenizer.highest == 2
    assert json.loads(tokenizer.text()) == json.loads(WORDS.to_str())


def padding(size: int) -> dict[str, Any]:
    return {
        "strategy": {"Fixed": size},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[UNK]",
    }


def test_padding_without_end_and_patterns_without_end_are_told() -> None:
    nested = Library(models.WordLevel({"a": 0}, "a"))
    nested.normalizer = normalizers.Replace("a", "a" * 30)
    nested.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")

    for content, text in ((changed(padding=padding(2**40)), "a"), (nested.to_str(), "aa!")):
        with pytest.raises(InputError, match="words cannot be used"):
            Tokenizer(content, "words").encode(text)


def test_a_short_text_becomes_no_long_one() -> None:
    """A model would be run over it, for as long and in as much memory as that takes."""
    tokenizer = Tokenizer(changed(padding=padding(2**14)), "words")
    with pytest.raises(InputError, match="words makes 16384 tokens of 1 characters"):
        tokenizer.encode("a")
    with pytest.raises(InputError, match="makes 99999 characters of the"):
        tokenizer.chat("{{ 'a' * 99999 }}", {})
    assert len(Tokenizer(changed(padding=padding(512)), "words").encode("a")) == 512


def test_what_is_no_tokenizer_or_no_text_is_told() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Tokenizer("{}", "words")
    with pytest.raises(InputError, match="words is no text"):
        Tokenizer(b"\xff", "words")
    with pytest.raises(InputError, match="The text is no text"):
        Tokenizer(WORDS.to_str(), "words").encode("\udcff")


def test_a_template_that_takes_memory_without_end_is_told() -> None:
    tokenizer = Tokenizer(WORDS.to_str(), "words")
    with pytest.raises(InputError, match="takes more memory than one may"):
        tokenizer.chat("{{ 'a' * 2**31 }}", {})
    assert tokenizer.chat("{{ a }}", {"a": "b"}) == "b"
