"""The tokenizer of a directory goes into the bundle as it is, with the tokens that end a text."""

import json
from pathlib import Path

import pytest

from intaglio.errors import SourceError
from intaglio.exporter.sources.huggingface.directory import read_directory
from intaglio.exporter.sources.huggingface.tokenizer import read_text

TOKENS, EOS = 260, 258


def test_files_template_and_endings_are_found(directory: Path) -> None:
    """The settings of generation say what ends a text, before the config does."""
    text, notes = read_text(read_directory(directory), TOKENS, allow_code=False)

    assert text is not None
    assert (notes, text.eos, text.template) == ((), (EOS,), "tokenizer_config.json")

    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2, 999]}))
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    text, _ = read_text(read_directory(directory), TOKENS, allow_code=False)

    assert text is not None
    assert (text.eos, text.template) == ((1, 2), "chat_template.jinja")
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= set(text.files)


def test_a_tokenizer_with_more_tokens_than_the_model_is_told(directory: Path) -> None:
    _, [note] = read_text(read_directory(directory), 200, allow_code=False)

    assert "tokens up to 258, the model knows those below 200" in note


def test_a_directory_without_one_has_none(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()

    assert read_text(read_directory(directory), TOKENS, allow_code=False) == (None, ())


def test_a_damaged_one_is_refused(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")

    with pytest.raises(SourceError, match="leave it out to export without"):
        read_text(read_directory(directory), TOKENS, allow_code=False)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "chat_template.jinja"])
def test_a_file_that_lies_elsewhere_is_not_carried_along(directory: Path, name: str) -> None:
    """A link may lead to a secret of the user's, and a file with holes be of any size."""
    secret = directory.parent / "secret"
    secret.write_text("secret")
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(secret)
    with pytest.raises(SourceError, match=r"is a link to .*secret, and would be copied"):
        read_text(read_directory(directory), TOKENS, allow_code=False)
    (directory / name).unlink()
    with (directory / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(SourceError, match="1099511627776 bytes, more than"):
        read_text(read_directory(directory), TOKENS, allow_code=False)
