"""Models of sentencepiece cut texts as the library itself does.

The files in `tests/data` were trained, and their tokens recorded, with sentencepiece 0.2.3.
"""

import json
from pathlib import Path

import pytest

from intaglio.errors import SourceError
from intaglio.exporter.sources import sentencepiece_model
from intaglio.exporter.sources.sentencepiece_model import convert
from intaglio.runtime.tokenizer_process import Tokenizer

DATA = Path(__file__).parents[2] / "data"


@pytest.mark.parametrize("kind", ["unigrams", "pairs"])
def test_texts_are_cut_as_the_library_cuts_them(kind: str) -> None:
    """Blanks, letters that are composed, characters that no piece has, and text again of tokens."""
    written, ends = convert((DATA / f"{kind}.model").read_bytes(), kind)
    tokenizer = Tokenizer(written, kind)

    assert ends == (2,)
    for case in json.loads((DATA / "sentencepiece.json").read_text(encoding="utf-8"))[kind]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"]) == case["again"], case["text"]


def test_what_is_no_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off, empty, of another kind, or with pieces that no language has."""
    whole = (DATA / "pairs.model").read_bytes()
    words = b"\x0a\x03\x0a\x01a" * 3 + b"\x12\x02\x18\x03"
    for content in (whole[: len(whole) // 2], b"", words):
        with pytest.raises(SourceError, match="no model of sentencepiece"):
            convert(content, "x")
    piece = b"\x0a\x90\x4e" + b"a" * 10000
    with pytest.raises(SourceError, match="longer than any"):
        convert(b"\x0a\x93\x4e" + piece + whole, "x")
    monkeypatch.setattr(sentencepiece_model, "MOST", 100)
    with pytest.raises(SourceError, match="more than 100 pieces"):
        convert(b"\x0a\x03\x0a\x01a" * 101, "x")
