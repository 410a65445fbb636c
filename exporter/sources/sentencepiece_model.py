"""Models of sentencepiece, ``.model`` files, as the tokenizer.json that a bundle holds.

They are converted once, when a bundle is made, and read as messages of protocol buffers: neither
the library nor a package that comes with it is needed, then or later, and what a file asks for is
bounded before anything is made of it.  The fields are those of sentencepiece_model.proto.

A text is normalised by the table in the file, blanks become U+2581, and it is cut by the scores of
pieces: for unigrams by the likeliest cut, for byte pairs by merging the pair of the best score.
Nothing is put before or behind a text, as the library itself does.

Kudo and Richardson 2018, arXiv:1808.06226.
"""

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from intaglio.errors import SourceError
from intaglio.runtime.protobuf import DamagedError, fields, text

BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
UNIGRAM, BPE = 1, 2
UNKNOWN, CONTROL, USER, BYTE = 2, 3, 4, 6
MOST = 1_000_000  # pieces; the largest vocabularies have a quarter of it
SPLITS = 50_000_000  # characters looked at to find out which pairs merge


@dataclass
class _Model:
    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    kind: int = UNIGRAM
    unknown: int = 0
    end: int = 2
    falls_back: bool = False
    suffix: bool = False
    table: bytes = b""
    prefix: bool = True
    strips: bool = True


def convert(content: bytes, name: str) -> tuple[str, tuple[int, ...]]:
    """A tokenizer.json that cuts texts as the model does, and the tokens that end a text.

    Raises:
        SourceError: if `content` is no such model, or one of a kind that is not read; messages
            call it `name`.
    """
    try:
        model = _read(memoryview(content))
    except (DamagedError, struct.error) as error:
        raise SourceError(f"{name} is no model of sentencepiece: {error}.") from error
    if not model.pieces or model.kind not in (UNIGRAM, BPE) or model.suffix:
        raise SourceError(
            f"{name} is no model of sentencepiece that is read: unigrams and byte pairs are. Give "
            "a tokenizer.json."
        )
    if not 0 <= model.unknown < len(model.pieces):
        raise SourceError(f"{name} is no model of sentencepiece: it has no unknown piece.")
    made = _unigrams(model) if model.kind == UNIGRAM else _pairs(model, name)
    strip: list[dict[str, Any]] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    decoders = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        *([{"type": "ByteFallback"}] if model.falls_back else []),
        {"type": "Fuse"},
        *(strip if model.prefix else []),
    ]
    written = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(model.pieces),
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": made,
    }
    ends = (model.end,) if 0 <= model.end < len(model.pieces) else ()
    return json.dumps(written, ensure_ascii=False), ends


def _read(message: memoryview) -> _Model:
    model = _Model()
    for number, value in fields(message):
        if number == 1 and not isinstance(value, int):
            model.pieces.append(_piece(value))
            if len(model.pieces) > MOST:
                raise DamagedError(f"it has more than {MOST} pieces")
        elif number == 2 and not isinstance(value, int):
            _trainer(model, value)
        elif number == 3 and not isinstance(value, int):
            _normalizer(model, value)
    return model


def _piece(message: memoryview) -> tuple[str, float, int]:
    piece, score, kind = "", 0.0, 1
    for number, value in fields(message):
        if number == 1:
            piece = text(value)
        elif number == 2 and not isinstance(value, int):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    return piece, score, kind


def _trainer(model: _Model, message: memoryview) -> None:
    for number, value in fields(message):
        if not isinstance(value, int):
            continue
        if number == 3:
            model.kind = value
        elif number == 24:
            model.suffix = bool(value)
        elif number == 35:
            model.falls_back = bool(value)
        elif number in (40, 42):
            found = value if value < 1 << 31 else -1
            model.unknown, model.end = (
                (found, model.end) if number == 40 else (model.unknown, found)
            )


def _normalizer(model: _Model, message: memoryview) -> None:
    for number, value in fields(message):
        if number == 2 and not isinstance(value, int):
            model.table = bytes(value)
        elif number == 3:
            model.prefix = bool(value)
        elif number == 4:
            model.strips = bool(value)


def _normalizers(model: _Model) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if model.table:
        table = base64.b64encode(model.table).decode()
        found.append({"type": "Precompiled", "precompiled_charsmap": table})
    if model.strips:
        found.append({"type": "Strip", "strip_left": True, "strip_right": True})
        found.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.prefix:
        found.append({"type": "Prepend", "prepend": BLANK})
    found.append({"type": "Replace", "pattern": {"String": " "}, "content": BLANK})
    return found


def _added(pieces: Sequence[tuple[str, float, int]]) -> list[dict[str, Any]]:
    """Pieces that stand for themselves: control tokens, which no text gives, and the user's own."""
    return [
        {
            "id": place,
            "content": piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != USER,
        }
        for place, (piece, _, kind) in enumerate(pieces)
        if kind in (UNKNOWN, CONTROL, USER)
    ]


def _unigrams(model: _Model) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": model.unknown,
        "vocab": [[piece, score] for piece, score, _ in model.pieces],
        "byte_fallback": model.falls_back,
    }


def _pairs(model: _Model, name: str) -> dict[str, Any]:
    vocabulary = {piece: place for place, (piece, _, _) in enumerate(model.pieces)}
    if len(vocabulary) != len(model.pieces):
        raise SourceError(f"{name} is no model of sentencepiece: a piece comes twice.")
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.pieces[model.unknown][0],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.falls_back,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": _merges(model.pieces, vocabulary, name),
    }


def _merges(
    pieces: Sequence[tuple[str, float, int]], vocabulary: Mapping[str, int], name: str
) -> list[list[str]]:
    """Pairs of pieces that make a piece, the best scores first."""
    plain = [(p, s) for p, s, kind in pieces if kind not in (UNKNOWN, CONTROL, USER, BYTE)]
    if sum(len(piece) ** 2 for piece, _ in plain) > SPLITS:
        raise SourceError(f"{name} has pieces longer than any of a language.")
    known = {piece for piece, _ in plain}
    found = []
    for piece, score in plain:
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        pairs = [(a, b) for a, b in cuts if a in known and b in known]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(score, pair) for pair in pairs]
    found.sort(key=lambda entry: -entry[0])
    return [list(pair) for _, pair in found]
