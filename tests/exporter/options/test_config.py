"""A config is given as a mapping or as a file of JSON or TOML."""

from pathlib import Path

import pytest

from intaglio.errors import SourceError
from intaglio.exporter.options.config import read_config


def test_a_config_is_a_mapping_or_a_file(tmp_path: Path) -> None:
    """JSON and TOML by the name of the file."""
    (tmp_path / "config.json").write_text('{"width": 5, "scale": 0.5}')
    (tmp_path / "config.toml").write_text("width = 5\nscale = 0.5\n")
    expected = {"width": 5, "scale": 0.5}

    assert read_config(expected) == expected
    assert read_config(tmp_path / "config.json") == expected
    assert read_config(str(tmp_path / "config.toml")) == expected
    assert read_config(None) == {}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{width: 5}", "is not valid JSON: .*line 1 column 2"),
        ("config.toml", "width: 5", "is not valid TOML: .*at line 1, column 6"),
        ("config.json", "[5]", "is no table of keys and values"),
        ("config.toml", "day = 2020-01-01", "a value that JSON cannot hold"),
        ("absent.json", None, "cannot be read: No such file"),
    ],
)
def test_a_config_that_cannot_be_read_is_told(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    """With the place where it goes wrong."""
    if text is not None:
        (tmp_path / name).write_text(text)

    with pytest.raises(SourceError, match=message):
        read_config(tmp_path / name)
