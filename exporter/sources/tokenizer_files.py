"""What turns text into tokens: the files of a tokenizer, which a bundle carries along."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio.exporter.options import recipe

FOLDER, TOKENIZER = recipe.TEXT_FOLDER, recipe.TOKENIZER


@dataclass(frozen=True, kw_only=True)
class Text:
    """A tokenizer of the `tokenizers` library, and the tokens that end a text.

    `files` holds the content of each file by its name, `TOKENIZER` among them; `template` names
    the one with the chat template.
    """

    files: Mapping[str, bytes]
    eos: tuple[int, ...] = ()
    template: str | None = None

    def save(self, bundle: Path) -> dict[str, Any]:
        """Write the files into the folder of a bundle; return the manifest's entry on them."""
        folder = bundle / FOLDER
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return {
            "tokenizer": f"{FOLDER}/{TOKENIZER}",
            "template": None if self.template is None else f"{FOLDER}/{self.template}",
            "eos": list(self.eos),
        }
