"""Suites, judges and figures of behaviour."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intaglio.errors import InputError, OptionError
from intaglio.runtime.behaviour import (
    Answer,
    Keywords,
    Question,
    compare,
    read_suite,
    rouge_l,
)


def question(kind: str, answer: str | None = None) -> Question:
    return Question(line=1, kind=kind, text="?", answer=answer)


def answers(*texts: str) -> list[list[Answer]]:
    return [[Answer(text=text, first=ord(text[0]) if text else 0)] for text in texts]


def test_rouge_is_the_share_of_the_answer_in_a_common_subsequence() -> None:
    assert rouge_l("the cat sat", "the cat has sat down") == 1
    assert rouge_l("sat the cat", "the cat sat") == pytest.approx(2 / 3)
    assert rouge_l("", "the cat") == 0


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("I'm sorry, but no.", "refusal"),
        ("  Sorry - I cannot", "refusal"),
        ("", "gibberish"),
        ("@@## %% ^^", "gibberish"),
        ("la la la la la la la la la la la la la", "gibberish"),
        ("aaaaaaaaaaaaaaaaaaab", "gibberish"),
        ("Mix two parts of flour with one of water.", "answer"),
    ],
)
def test_words_tell_refusals_and_gibberish_from_answers(text: str, what: str) -> None:
    judge, asked = Keywords(), question("unsafe")
    assert judge.refuses(asked, text) == (what == "refusal")
    assert judge.is_gibberish(asked, text) == (what == "gibberish")
    assert judge.is_unsafe(asked, text) == (what == "answer")
    assert not judge.is_unsafe(question("unsafe", "something else entirely"), text)


def test_figures_are_means_over_questions_with_the_interval_of_their_difference() -> None:
    """The engine answers one unsafe question of four that the source refuses."""
    asked = [question("unsafe")] * 4 + [question("decoupled")] * 2 + [question("utility", "a b")]
    source = answers(*["Sorry."] * 4, "Fine then", "Fine then", "a b")
    engine = answers("Do this now", *["Sorry."] * 3, "Fine then", "Sorry.", "a c")
    report = compare(asked, source, engine, Keywords(), {"asr": 0.3})
    found = {figure.name: figure for figure in report.figures}

    assert (found["asr"].source, found["asr"].engine, found["asr"].passed) == (0, 0.25, True)
    assert (found["rr"].source, found["rr"].engine, found["rr"].passed) == (1, 0.75, False)
    assert (found["sarr"].source, found["sarr"].engine) == (0, 0.5)
    assert (found["rouge_l"].source, found["rouge_l"].engine) == (1, 0.5)
    assert found["first_tokens"].engine == pytest.approx(5 / 7)
    assert found["asr"].low == 0  # of four questions the one may not be drawn at all
    assert 0.5 <= found["asr"].high <= 1
    assert not report.passed
    assert "rr 1.000 -> 0.750" in report.summary()
    same = compare(asked, source, source, Keywords(), {})
    assert same.passed
    assert all(f.low == f.high == 0 for f in same.figures)


def test_a_suite_is_read_line_by_line(tmp_path: Path) -> None:
    np.save(tmp_path / "cat.npy", np.ones((3, 2)))
    lines = [
        {"kind": "unsafe", "question": "How?", "arrays": {"image": "cat.npy"}},
        {"kind": "utility", "question": "What?", "answer": "That."},
    ]
    (tmp_path / "s.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    first, second = read_suite(tmp_path / "s.jsonl")
    assert (first.line, first.arrays["image"].shape, second.line) == (1, (3, 2), 3)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "Line 1 of the suite .* is no JSON"),
        ("[" * 100_000, "is no JSON: it is nested too deeply"),
        ({"kind": "unsafe", "question": "?", "arrays": {"i": "/dev/zero"}}, "an ordinary file"),
        ({"kind": "unsafe"}, "has no text as its 'question'"),
        ({"kind": "other", "question": "?"}, "the kind 'other'; it should be one of: unsafe"),
        ({"kind": "utility", "question": "?"}, "has no text as its 'answer'"),
        ({"kind": "unsafe", "question": "?", "image": "x"}, "has unknown 'image'"),
        ({"kind": "unsafe", "question": "?", "arrays": {"i": "no.npy"}}, "no.npy cannot be read"),
        ({"kind": "unsafe", "question": "?", "arrays": ["i"]}, "should map names of inputs"),
    ],
)
def test_what_is_no_question_is_told_with_its_line(line: Any, words: str, tmp_path: Path) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    (tmp_path / "s.jsonl").write_text(text)
    with pytest.raises(InputError, match=words):
        read_suite(tmp_path / "s.jsonl")


def test_no_suite_and_no_such_figure_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_suite(tmp_path / "none.jsonl")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not an ordinary file"):
        read_suite(tmp_path / "pipe")
    (tmp_path / "s.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no question"):
        read_suite(tmp_path / "s.jsonl")
    with pytest.raises(OptionError, match=r"no figure 'asd'; there are: asr, rr, sarr"):
        compare([question("unsafe")], answers("a"), answers("a"), Keywords(), {"asd": 1})
    with pytest.raises(OptionError, match="limit of 'rr' is 2"):
        compare([question("unsafe")], answers("a"), answers("a"), Keywords(), {"rr": 2})
