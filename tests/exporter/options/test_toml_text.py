"""TOML that would keep a parser busy is refused before it is parsed."""

import pytest

from intaglio.exporter.options.toml_text import parse_toml


def test_what_people_write_is_read() -> None:
    assert parse_toml('steps = 4\n[config]\n"a.b".c = "1. 2. 3."') == {
        "steps": 4,
        "config": {"a.b": {"c": "1. 2. 3."}},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a." * 50_000 + "b = 1", "more than 64 parts"),
        ("[" + '"a" . ' * 50_000 + "b]", "more than 64 parts"),
        ("a = " + "[" * 50_000, "nested too deeply"),
        ("#" * (1 << 20) + "#", "characters, more than"),
    ],
)
def test_what_nobody_writes_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_toml(text)
