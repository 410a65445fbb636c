"""What the user says beside the source: how it is built, what it takes, what is allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from intaglio.errors import OptionError

Config = Mapping[str, Any] | str | Path


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """The options of `intaglio.exporter.sources.load.load_source`, which describes them."""

    model: str | None = None
    config: Config | None = None
    key: str | None = None
    import_from: Sequence[str | Path] = ()
    inputs: Mapping[str, Any] | str | Path | None = None
    axes: Mapping[str, Sequence[int | str]] | None = None
    allow_code: bool = False
    allow_pickle: bool = False

    def refuse(self, what: str, *names: str) -> None:
        """Refuse those of the options `names` that were given: they mean nothing for `what`.

        Raises:
            OptionError: if one was given.
        """
        for entry in fields(self):
            if entry.name in names and getattr(self, entry.name):
                option = entry.name.replace("_", "-")
                raise OptionError(f"--{option} says nothing about {what}; leave it out.")
